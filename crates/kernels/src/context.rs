//! What every call shares: options and the pool of buffers.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};

use crate::activations::words_for;
use crate::amx::Amx;
use crate::simd::Vectors;
use crate::{Activations, Error, Precision, SumAcross, pages};

/// The instruction sets there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// x86-64 with AVX-512 as below, its instructions for bf16, and the matrix unit AMX; Linux.
    Amx,
    /// x86-64 with AVX-512 F, BW, DQ and VL.
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// 64-bit ARM.
    Neon,
    /// Plain Rust, any machine.
    Portable,
}

impl Isa {
    /// Every instruction set, best first.
    pub const ALL: [Isa; 5] = [Isa::Amx, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// The name that `KERNELS_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        Vectors::detect(self).is_some()
    }

    /// The best available instruction set, or the one that the environment variable `KERNELS_ISA` names
    /// (`amx`, `avx512`, `avx2`, `neon` or `portable`).
    ///
    /// # Errors
    /// [`Error::Isa`] if `KERNELS_ISA` names none of them or one that this machine lacks.
    pub fn detect() -> Result<Isa, Error> {
        match std::env::var("KERNELS_ISA") {
            Ok(name) if !name.is_empty() => Self::ALL
                .into_iter()
                .find(|isa| isa.name() == name)
                .filter(|isa| isa.is_available())
                .ok_or_else(|| Error::Isa { name, available: Self::available_names() }),
            _ => Ok(Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)),
        }
    }

    fn available_names() -> String {
        let names: Vec<_> = Self::ALL.into_iter().filter(|i| i.is_available()).map(Isa::name).collect();
        names.join(", ")
    }
}

/// What a residual block keeps between its forward and its backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Checkpointing {
    /// The raw outputs of its convolutions: fastest.
    #[default]
    Off,
    /// Its input and the batch statistics only; the convolutions run again in the backward pass.
    Blocks,
}

/// How to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Options {
    /// Storage of feature maps and their gradients.
    pub precision: Precision,
    /// Avoids Strassen's and Winograd's algorithms, whose rounding errors are some 2 to 3, and 15 to 45, times those of a direct
    /// sum (still about 5e-5 of the output's RMS), and the matrix unit, which multiplies numbers of f32 cut into two of bf16:
    /// some 10 times.
    pub exact: bool,
    /// Whether training passes, too, take the matrix unit where there is one ([`Isa::Amx`]), as inference always does without
    /// `exact`. Layers that vectors would multiply exactly are rounded to some 17 bits then.
    pub matrix_unit: bool,
    /// What blocks keep for the backward pass.
    pub checkpointing: Checkpointing,
    /// The instruction set; `None` chooses the best one, see [`Isa::detect`].
    pub isa: Option<Isa>,
}

/// Options, checked, and the pool: passed to every call.
#[derive(Debug)]
pub struct Context {
    precision: Precision,
    exact: bool,
    trains_on_matrix_unit: bool,
    checkpointing: Checkpointing,
    isa: Isa,
    vectors: Vectors,
    bf16_products: bool,
    sum_across: Option<Arc<dyn SumAcross>>,
    pool: BufferPool,
}

impl Context {
    /// A context with an empty pool.
    ///
    /// # Errors
    /// [`Error::Isa`] if the instruction set asked for is not available.
    pub fn new(options: Options) -> Result<Self, Error> {
        let isa = options.isa.map_or_else(Isa::detect, Ok)?;
        let Some(vectors) = Vectors::detect(isa) else {
            return Err(Error::Isa { name: isa.name().into(), available: Isa::available_names() });
        };
        Ok(Self {
            precision: options.precision,
            exact: options.exact,
            trains_on_matrix_unit: options.matrix_unit && vectors.matrix_unit().is_some(),
            checkpointing: options.checkpointing,
            isa,
            vectors,
            bf16_products: options.precision == Precision::Mixed
                && !options.exact
                && multiplies_bf16(vectors),
            sum_across: None,
            pool: BufferPool::default(),
        })
    }

    /// Normalises batches of several processes by their common statistics: batch norm's sums go through `across` from now
    /// on, see [`SumAcross`]. `None`, the initial state, normalises by this process's own.
    pub fn set_sum_across(&mut self, across: Option<Arc<dyn SumAcross>>) {
        self.sum_across = across;
    }

    /// What adds up batch norm's sums over processes, if there are several.
    pub fn sum_across(&self) -> Option<&dyn SumAcross> {
        self.sum_across.as_deref()
    }

    /// Storage of feature maps.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether algorithms with larger rounding errors are avoided.
    pub fn exact(&self) -> bool {
        self.exact
    }

    /// What blocks keep for the backward pass.
    pub fn checkpointing(&self) -> Checkpointing {
        self.checkpointing
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The token of the instruction set in use.
    pub(crate) fn vectors(&self) -> Vectors {
        self.vectors
    }

    /// Whether training passes may take the matrix unit.
    pub(crate) fn trains_on_matrix_unit(&self) -> bool {
        self.trains_on_matrix_unit
    }

    /// The proof of a matrix unit, for plans that are made where there is one.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn matrix_unit(&self) -> Amx {
        self.vectors.matrix_unit().expect("a plan for this machine")
    }

    /// Whether direct convolutions of activations stored as bf16 also multiply in bf16 (with weights rounded to
    /// bf16), summing in f32: in mixed precision without `exact`, on AVX-512 machines where that is twice as fast.
    pub fn bf16_products(&self) -> bool {
        self.bf16_products
    }

    /// The pool that units take their buffers from and give them back to.
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Activations with unspecified contents, from the pool.
    pub fn activations(&self, shape: [usize; 4], precision: Precision) -> Activations {
        Activations { shape, precision, words: self.pool.take(words_for(shape, precision)) }
    }

    /// Gives activations' storage back to the pool.
    pub fn recycle(&self, activations: Activations) {
        self.pool.give(activations.words);
    }
}

/// Whether products of bf16 run faster than those of f32. The instruction alone does not tell: on Intel's server
/// chips measured it ran at half the rate of an f32 product, on AMD's at the same. The vendor decides, not a
/// measurement at run time, so that results on a machine are always the same.
fn multiplies_bf16(vectors: Vectors) -> bool {
    #[cfg(target_arch = "x86_64")]
    if let Vectors::Avx512Bf16(_) | Vectors::Amx(..) = vectors {
        let leaf = std::arch::x86_64::__cpuid(0);
        let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        return name == b"AuthenticAMD";
    }
    let _ = vectors;
    false
}

/// Buffers to use again: the first touch of fresh memory costs more than the work done in it.
///
/// A training step asks for the same sizes again and again, so after the first step it allocates nothing.
#[derive(Debug, Default)]
pub struct BufferPool {
    free: Mutex<Vec<Vec<f32>>>,
}

impl BufferPool {
    /// A buffer of `len` words with unspecified (but initialised) contents.
    pub fn take(&self, len: usize) -> Vec<f32> {
        // To waste more costs more memory than it saves: others then find no buffer.
        match self.find(len, len + len / 2) {
            Some(mut buffer) => {
                buffer.truncate(len);
                buffer
            }
            None => pages::zeros(len),
        }
    }

    /// A buffer of `len` words with unspecified contents for the time of a pass. However long the buffer is that they
    /// begin, it is back before activations are asked for.
    pub(crate) fn scratch(&self, len: usize) -> Scratch<'_> {
        let found = if len > 0 { self.find(len, usize::MAX) } else { None };
        Scratch { pool: self, buffer: found.unwrap_or_else(|| pages::zeros(len)), len }
    }

    /// Hands a buffer to the pool.
    pub fn give(&self, mut buffer: Vec<f32>) {
        if buffer.capacity() == 0 {
            return;
        }
        // A truncated buffer regains its length; only the missing tail is written.
        let capacity = buffer.capacity();
        buffer.resize(capacity, 0.0);
        self.lock().push(buffer);
    }

    /// Takes the smallest free buffer of at least and at most so many words; the newest of equals is warmest in cache.
    fn find(&self, least: usize, most: usize) -> Option<Vec<f32>> {
        let mut free = self.lock();
        let fitting = (0..free.len()).rev().filter(|&i| (least..=most).contains(&free[i].len()));
        let best = fitting.min_by_key(|&i| free[i].len())?;
        Some(free.swap_remove(best))
    }

    /// Words held for later use.
    pub fn free_words(&self) -> usize {
        self.lock().iter().map(Vec::len).sum()
    }

    /// Frees all buffers held.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<f32>>> {
        // A panic elsewhere cannot leave the list half changed.
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A buffer that goes back to the pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Scratch<'a> {
    pool: &'a BufferPool,
    /// At least `len` words.
    buffer: Vec<f32>,
    len: usize,
}

impl Deref for Scratch<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again() {
        let pool = BufferPool::default();
        let buffer = pool.take(1000);
        let address = buffer.as_ptr() as usize;
        pool.give(buffer);
        let again = pool.take(990);
        assert_eq!((again.as_ptr() as usize, again.len()), (address, 990));
        pool.give(again);
        let third = pool.take(1000);
        assert_eq!(third.as_ptr() as usize, address);
        assert_eq!(pool.free_words(), 0);
    }

    #[test]
    fn much_larger_buffers_are_left_alone() {
        let pool = BufferPool::default();
        pool.give(vec![0.0; 1000]);
        assert_eq!(pool.take(10).len(), 10);
        assert_eq!(pool.free_words(), 1000);
    }

    #[test]
    fn scratch_memory_is_part_of_any_longer_buffer_and_comes_back_whole() {
        let pool = BufferPool::default();
        pool.give(vec![0.0; 1000]);
        pool.give(vec![0.0; 500]);
        let mut scratch = pool.scratch(10);
        assert_eq!((scratch.len(), pool.free_words()), (10, 1000));
        scratch.fill(1.0);
        let second = pool.scratch(600);
        assert_eq!((second.len(), pool.free_words()), (600, 0));
        assert_eq!(pool.scratch(0).len(), 0);
        drop(scratch);
        drop(second);
        assert_eq!(pool.free_words(), 1500);
    }

    #[test]
    fn an_unavailable_instruction_set_is_refused() {
        let missing = if cfg!(target_arch = "aarch64") { Isa::Avx512 } else { Isa::Neon };
        let error = Context::new(Options { isa: Some(missing), ..Options::default() }).unwrap_err();
        assert!(matches!(error, Error::Isa { .. }));
    }
}
