//! Cosines of many rows with many others: matrix products by the kernels of networks, of which each is a linear layer without bias.

use ndarray::Array2;
use swav_kernels::bounds::RowBounds;
use swav_kernels::net::{Linear, Unit};
use swav_kernels::{Activations, Context, Isa, Options, Precision};

/// Multiplies rows by rows. Each number is a direct sum in an order that depends on the rows' length alone, so equal rows have equal
/// products wherever they are, for any number of threads.
pub(crate) struct Similarities {
    ctx: Context,
}

impl Similarities {
    /// Chooses the instruction set, as networks do.
    pub fn new() -> Self {
        let isa = Isa::detect().unwrap_or(Isa::Portable);
        let options =
            Options { precision: Precision::F32, exact: true, isa: Some(isa), ..Options::default() };
        Self { ctx: Context::new(options).expect("plain Rust runs everywhere") }
    }

    /// Rows as [`each`](Self::each) takes them.
    pub fn queries(rows: Array2<f32>) -> Activations {
        let shape = [rows.nrows(), 1, 1, rows.ncols()];
        let rows = if rows.is_standard_layout() { rows } else { rows.as_standard_layout().into_owned() };
        let values = rows.into_raw_vec_and_offset().0;
        Activations::from_f32(shape, values).expect("as many values as rows and columns say")
    }

    /// Bounds of the products with a bank, where they are faster than the products.
    pub fn bounds<'a>(&self, bank: &'a [f32], width: usize) -> Option<RowBounds<'a>> {
        RowBounds::new(&self.ctx, bank, width)
    }

    /// The products of all queries with the rows of `bank`, which are as long: `act` sees a query's after the other's.
    pub fn each(&self, queries: &Activations, bank: &[f32], act: impl FnOnce(&[f32])) {
        let width = queries.shape[3];
        let layer = Linear::new(width, bank.len() / width, false);
        let products = layer.forward_infer(&self.ctx, queries, &[bank], &[]).expect("rows of one length");
        act(&products.words);
        self.ctx.recycle(products);
    }
}
