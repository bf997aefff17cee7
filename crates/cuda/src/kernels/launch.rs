//! One launch of a kernel, as data.

/// An argument of a kernel; its kind is that of the kernel's parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg<P> {
    /// A buffer.
    Pointer(P),
    /// No buffer, where one is optional.
    Null,
    /// An `int`.
    I32(i32),
    /// A `float`.
    F32(f32),
}

/// One launch of a kernel; kernels have static shared memory only.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch<P> {
    /// One of [`NAMES`](super::NAMES).
    pub kernel: &'static str,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y and z.
    pub block: [u32; 3],
    /// The arguments, in the order of the kernel's parameters.
    pub args: Vec<Arg<P>>,
}

impl<P> Launch<P> {
    /// A launch without arguments so far.
    pub(super) fn new(kernel: &'static str, grid: [usize; 3], block: [usize; 3]) -> Self {
        let extent =
            |n: usize| u32::try_from(n).unwrap_or_else(|_| panic!("a grid of {n} blocks in {kernel}"));
        Self { kernel, grid: grid.map(extent), block: block.map(extent), args: Vec::with_capacity(16) }
    }

    /// A launch of blocks of 256 threads along x.
    pub(super) fn blocks(kernel: &'static str, grid: [usize; 3]) -> Self {
        Self::new(kernel, grid, [super::THREADS, 1, 1])
    }

    /// A launch with a thread for each of `n` elements.
    pub(super) fn each(kernel: &'static str, n: usize) -> Self {
        Self::blocks(kernel, [n.div_ceil(super::THREADS).max(1), 1, 1])
    }

    /// Adds a buffer.
    pub(super) fn pointer(mut self, p: P) -> Self {
        self.args.push(Arg::Pointer(p));
        self
    }

    /// Adds a buffer, or null.
    pub(super) fn optional(mut self, p: Option<P>) -> Self {
        self.args.push(p.map_or(Arg::Null, Arg::Pointer));
        self
    }

    /// Adds an `int`.
    ///
    /// # Panics
    /// If it is 2^30 or more: no kernel's index may overflow.
    pub(super) fn int(mut self, n: usize) -> Self {
        assert!(n < 1 << 30, "{n} is too large for {}", self.kernel);
        self.args.push(Arg::I32(n as i32));
        self
    }

    /// Adds an `int` that is 0 or 1.
    pub(super) fn flag(mut self, on: bool) -> Self {
        self.args.push(Arg::I32(i32::from(on)));
        self
    }

    /// Adds a `float`.
    pub(super) fn float(mut self, x: f32) -> Self {
        self.args.push(Arg::F32(x));
        self
    }

    /// The same launch with other buffer handles.
    pub fn map<Q>(self, mut f: impl FnMut(P) -> Q) -> Launch<Q> {
        let args = self.args.into_iter().map(|arg| match arg {
            Arg::Pointer(p) => Arg::Pointer(f(p)),
            Arg::Null => Arg::Null,
            Arg::I32(n) => Arg::I32(n),
            Arg::F32(x) => Arg::F32(x),
        });
        Launch { kernel: self.kernel, grid: self.grid, block: self.block, args: args.collect() }
    }
}
