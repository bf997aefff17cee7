//! The kernels' own source against f64, without a card.
//!
//! The C++ compiler of the machine (`CXX`, else `c++`) builds `kernels/` with `shim.hpp` in the place of `device.cuh`,
//! and the launches of `swav_cuda::kernels` run on the result. Without a C++ compiler these tests fail. On a machine with
//! a card `SWAV_TEST_CARD=0` runs the same tests there.

mod card;
mod codes;
mod data;
mod input;
mod linear;
mod norm;
mod pool;
mod shim;
mod tools;
mod update;
