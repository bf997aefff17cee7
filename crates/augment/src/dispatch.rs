//! Compiles a kernel several times, once for each instruction set, and picks the best at run time.
//!
//! The kernels are plain loops that the compiler vectorises. None uses a fused multiply-add or reorders
//! a floating-point sum, so every variant gives the same bits on every machine.

/// Defines functions that exist for the baseline, AVX2 and AVX-512, and choose among them when called.
macro_rules! dispatched {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $out)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $out)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $out)? {
                    plain($($arg),*)
                }

                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $out)? {
                    plain($($arg),*)
                }

                if is_x86_feature_detected!("avx2") {
                    if is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                    {
                        // SAFETY: every feature that the function enables was just detected.
                        return unsafe { avx512($($arg),*) };
                    }
                    // SAFETY: every feature that the function enables was just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}

pub(crate) use dispatched;
