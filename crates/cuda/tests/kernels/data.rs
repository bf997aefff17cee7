//! Buffers of exact size, random values, comparisons.

use std::alloc::{Layout, alloc, dealloc};

use half::bf16;
use swav_cuda::driver::DeviceMemory;
use swav_cuda::kernels::Launch;
use swav_cuda::shape::Element;

use crate::card::machine;
use crate::shim::{SANITIZED, shim};

/// Memory of the machine that the tests run on, 16-byte aligned, filled with NaN. On the CPU it is not a byte longer
/// than asked for.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Host { pointer: *mut u8, layout: Layout },
    Card(DeviceMemory),
}

impl Buffer {
    pub fn bytes(bytes: usize) -> Self {
        let len = bytes.max(16);
        if let Some(machine) = machine() {
            return Self { memory: Memory::Card(machine.memory(len)), len };
        }
        let layout = Layout::from_size_align(len, 16).expect("a small size");
        // SAFETY: the size is not zero.
        let pointer = unsafe { alloc(layout) };
        assert!(!pointer.is_null(), "no memory");
        // SAFETY: these bytes were just allocated.
        unsafe { pointer.write_bytes(0xff, len) };
        Self { memory: Memory::Host { pointer, layout }, len }
    }

    /// `len` values that nobody has written.
    pub fn empty(element: Element, len: usize) -> Self {
        Self::bytes(element.bytes() * len)
    }

    pub fn f32(values: &[f32]) -> Self {
        Self::raw(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn i32(values: &[i32]) -> Self {
        Self::raw(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn raw(values: &[u8]) -> Self {
        let buffer = Self::bytes(values.len());
        match &buffer.memory {
            // SAFETY: the buffer has that many bytes.
            Memory::Host { pointer, .. } => unsafe {
                pointer.copy_from_nonoverlapping(values.as_ptr(), values.len());
            },
            Memory::Card(memory) => machine().expect("its memory").upload(memory, values),
        }
        buffer
    }

    /// Values of `element`; they must be exact in it.
    pub fn of(element: Element, values: &[f64]) -> Self {
        match element {
            Element::F32 => Self::f32(&values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            Element::Bf16 => Self::raw(
                &values.iter().flat_map(|&x| bf16::from_f32(x as f32).to_le_bytes()).collect::<Vec<_>>(),
            ),
        }
    }

    /// The address.
    pub fn at(&self) -> u64 {
        match &self.memory {
            Memory::Host { pointer, .. } => *pointer as u64,
            Memory::Card(memory) => memory.address(),
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.memory {
            Memory::Host { pointer, .. } => {
                // SAFETY: the buffer has that many bytes, all of them written.
                let bytes = unsafe { std::slice::from_raw_parts(*pointer, self.len) };
                bytes.to_vec()
            }
            Memory::Card(memory) => machine().expect("its memory").download(memory, self.len),
        }
    }

    /// The first `len` values.
    pub fn read(&self, element: Element, len: usize) -> Vec<f64> {
        let bytes = self.to_bytes();
        let bytes = &bytes[..len * element.bytes()];
        match element {
            Element::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect()
            }
            Element::Bf16 => {
                bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect()
            }
        }
    }

    pub fn read_f32(&self, len: usize) -> Vec<f64> {
        self.read(Element::F32, len)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Host { pointer, layout } = self.memory {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(pointer, layout) }
        }
    }
}

/// A generator of repeatable values.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// About normal, exact in `element`.
    pub fn values(&mut self, element: Element, len: usize, scale: f64, shift: f64) -> Vec<f64> {
        (0..len).map(|_| exact(element, (self.unit() + self.unit() + self.unit()) * scale + shift)).collect()
    }
}

/// A value rounded to `element`.
pub fn exact(element: Element, x: f64) -> f64 {
    match element {
        Element::F32 => f64::from(x as f32),
        Element::Bf16 => bf16::from_f32(x as f32).to_f64(),
    }
}

/// Largest relative rounding error of a result of this type that was computed in f32.
pub fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 2e-5,
        Element::Bf16 => 4.5e-3,
    }
}

/// Asserts |got - expected| <= tolerance · (|expected| + scale) everywhere.
#[track_caller]
pub fn close(what: &str, got: &[f64], expected: &[f64], tolerance: f64, scale: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let bound = tolerance * (expected.abs() + scale);
        assert!((got - expected).abs() <= bound, "{what}[{i}]: {got}, expected {expected} within {bound:e}");
    }
}

/// Runs `f` in four orders of threads and blocks, on a card twice; `f` gets the runner of launches and returns what they
/// wrote, which must be the same bits each time.
pub fn in_any_order(f: impl Fn(&dyn Fn(&[Launch<u64>])) -> Vec<Buffer>) {
    let mut first: Option<Vec<Vec<u8>>> = None;
    // Under the sanitiser fibers are slow, and one order suffices.
    let sanitized = std::env::var_os(SANITIZED).is_some();
    let orders = match machine() {
        Some(_) => 2,
        None if sanitized => 1,
        None => 4,
    };
    for order in 0..orders {
        let written = f(&|launches| match machine() {
            Some(machine) => machine.run(launches),
            None => shim().run(launches, order),
        });
        let written: Vec<Vec<u8>> = written.iter().map(Buffer::to_bytes).collect();
        match &first {
            None => first = Some(written),
            Some(first) => assert!(*first == written, "order {order}"),
        }
    }
}

/// Both types.
pub const ELEMENTS: [Element; 2] = [Element::F32, Element::Bf16];
