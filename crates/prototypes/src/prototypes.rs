//! The prototypes: rows of unit length, their scores and both gradients.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use ndarray_rand::RandomExt;
use ndarray_rand::rand_distr::StandardNormal;
use rand::Rng;

use crate::error::PrototypeError;
use crate::mutants::mutated;
use crate::product::matrix_product;

/// The smallest norm that [`Prototypes::normalise`] divides by, as in PyTorch's `normalize`.
const MIN_NORM: f32 = 1e-12;

/// One or several heads of prototypes over the same embedding.
///
/// Head h is a matrix (K_h, D). With one head its name is `prototypes.weight`; with several they are
/// `prototypes.prototypes0.weight`, `prototypes.prototypes1.weight`, ..., as in the reference's
/// `MultiPrototypes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prototypes {
    heads: Vec<Array2<f32>>,
}

/// For how many iterations from the start of training the prototypes stay as they were drawn.
///
/// Frozen prototypes get no update at all: no gradient, no weight decay, no momentum (reference
/// `main_swav.py`, "cancel some gradients"). They are still projected onto the sphere, which changes
/// nothing but rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Freeze {
    /// Iterations without an update.
    pub n_iters: u64,
}

impl Freeze {
    /// Whether iteration `iteration` (from 0) updates the prototypes.
    pub fn allows_update(self, iteration: u64) -> bool {
        iteration >= self.n_iters
    }
}

impl Prototypes {
    /// Draws `n_prototypes[h]` unit vectors of dimension `dim` for each head h.
    ///
    /// Rows are standard normal vectors scaled to unit length: uniform on the sphere. The reference
    /// starts from PyTorch's uniform initialisation of a dense layer and normalises before the first
    /// step, which favours the diagonals of the cube a little; this is a deliberate deviation, and
    /// [`Prototypes::from_weights`] takes any other start.
    ///
    /// # Errors
    /// [`PrototypeError::Empty`] without heads, with a head of 0 prototypes, or with `dim` 0.
    pub fn random(n_prototypes: &[usize], dim: usize, rng: &mut impl Rng) -> Result<Self, PrototypeError> {
        let heads =
            n_prototypes.iter().map(|&k| Array2::random_using((k, dim), StandardNormal, rng)).collect();
        let mut prototypes = Self::from_weights(heads)?;
        prototypes.normalise();
        Ok(prototypes)
    }

    /// Takes weights as they are, one (K, D) matrix per head.
    ///
    /// # Errors
    /// Empty heads, dimensions that differ between heads, values that are not finite.
    pub fn from_weights(heads: Vec<Array2<f32>>) -> Result<Self, PrototypeError> {
        let Some(first) = heads.first() else { return Err(PrototypeError::Empty { what: "heads" }) };
        let dim = first.ncols();
        if dim == 0 {
            return Err(PrototypeError::Empty { what: "embedding dimension" });
        }
        for (head, weights) in heads.iter().enumerate() {
            if weights.nrows() == 0 {
                return Err(PrototypeError::Empty { what: "prototypes of a head" });
            }
            expect("embedding dimension of a head", dim, weights.ncols())?;
            if let Some(((row, _), &got)) = weights.indexed_iter().find(|(_, x)| !x.is_finite()) {
                return Err(PrototypeError::NotFinite { head, row, got });
            }
        }
        let heads = heads.into_iter().map(|weights| weights.as_standard_layout().into_owned()).collect();
        Ok(Self { heads })
    }

    /// Number of heads, at least 1.
    pub fn n_heads(&self) -> usize {
        self.heads.len()
    }

    /// Dimension D of the embeddings.
    pub fn dim(&self) -> usize {
        self.heads[0].ncols()
    }

    /// Number of prototypes K of one head.
    ///
    /// # Errors
    /// [`PrototypeError::NoSuchHead`].
    pub fn n_prototypes(&self, head: usize) -> Result<usize, PrototypeError> {
        Ok(self.head(head)?.nrows())
    }

    /// The parameters' names, one per head, in the reference's convention.
    pub fn names(&self) -> Vec<String> {
        match self.heads.len() {
            1 => vec!["prototypes.weight".to_owned()],
            n => (0..n).map(|head| format!("prototypes.prototypes{head}.weight")).collect(),
        }
    }

    /// The weights (K, D) of one head.
    ///
    /// # Errors
    /// [`PrototypeError::NoSuchHead`].
    pub fn weights(&self, head: usize) -> Result<ArrayView2<'_, f32>, PrototypeError> {
        Ok(self.head(head)?.view())
    }

    /// The weights (K, D) of one head, to update them; contiguous, row by row.
    ///
    /// # Errors
    /// [`PrototypeError::NoSuchHead`].
    pub fn weights_mut(&mut self, head: usize) -> Result<ArrayViewMut2<'_, f32>, PrototypeError> {
        let n_heads = self.heads.len();
        let weights = self.heads.get_mut(head).ok_or(PrototypeError::NoSuchHead { head, n_heads })?;
        Ok(weights.view_mut())
    }

    /// Scales every row of every head to unit length, in place.
    ///
    /// A row shorter than 1e-12 is divided by 1e-12 (a row of zeros stays zero), as PyTorch's `normalize` does.
    pub fn normalise(&mut self) {
        if mutated("prototypes-not-normalised") {
            return;
        }
        for weights in &mut self.heads {
            for mut row in weights.axis_iter_mut(Axis(0)) {
                let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
                let norm = (square.sqrt() as f32).max(MIN_NORM);
                row.mapv_inplace(|x| x / norm);
            }
        }
    }

    /// Scores `z · Cᵀ` (B, K) of embeddings `z` (B, D) under one head.
    ///
    /// With unit rows on both sides these are cosines in [-1, 1].
    ///
    /// # Errors
    /// A head that does not exist, a dimension that does not fit.
    pub fn scores(&self, head: usize, z: ArrayView2<'_, f32>) -> Result<Array2<f32>, PrototypeError> {
        let weights = self.head(head)?;
        expect("embedding dimension", weights.ncols(), z.ncols())?;
        Ok(matrix_product(z, weights.t()))
    }

    /// Gradient with respect to the embeddings, `dL/dz = dL/ds · C` (B, D), given `grad_scores` (B, K) of one head.
    ///
    /// # Errors
    /// A head that does not exist, a number of prototypes that does not fit.
    pub fn grad_embeddings(
        &self,
        head: usize,
        grad_scores: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, PrototypeError> {
        let weights = self.head(head)?;
        expect("prototypes in the gradient of the scores", weights.nrows(), grad_scores.ncols())?;
        Ok(matrix_product(grad_scores, weights.view()))
    }

    /// Gradient with respect to the prototypes, `dL/dC = (dL/ds)ᵀ · z` (K, D), given `grad_scores` (B, K) of one head
    /// and the embeddings `z` (B, D).
    ///
    /// The projection onto the sphere is not differentiated through: it happens outside the graph, as in
    /// the reference.
    ///
    /// # Errors
    /// A head that does not exist, extents that do not fit.
    pub fn grad_weights(
        &self,
        head: usize,
        grad_scores: ArrayView2<'_, f32>,
        z: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, PrototypeError> {
        let weights = self.head(head)?;
        expect("prototypes in the gradient of the scores", weights.nrows(), grad_scores.ncols())?;
        expect("embedding dimension", weights.ncols(), z.ncols())?;
        expect("rows of the gradient of the scores", z.nrows(), grad_scores.nrows())?;
        Ok(matrix_product(grad_scores.t(), z))
    }

    fn head(&self, head: usize) -> Result<&Array2<f32>, PrototypeError> {
        let n_heads = self.heads.len();
        self.heads.get(head).ok_or(PrototypeError::NoSuchHead { head, n_heads })
    }
}

fn expect(what: &'static str, expected: usize, got: usize) -> Result<(), PrototypeError> {
    if expected == got { Ok(()) } else { Err(PrototypeError::Shape { what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn rng() -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(7)
    }

    #[test]
    fn rows_start_at_unit_length_and_repeat_by_seed() {
        let prototypes = Prototypes::random(&[40, 3], 17, &mut rng()).expect("valid sizes");
        for head in 0..2 {
            for row in prototypes.weights(head).expect("exists").rows() {
                assert!((row.dot(&row) - 1.0).abs() < 1e-6);
            }
        }
        assert_eq!(prototypes, Prototypes::random(&[40, 3], 17, &mut rng()).expect("valid sizes"));
    }

    #[test]
    fn names_follow_the_reference() {
        let one = Prototypes::random(&[4], 2, &mut rng()).expect("valid sizes");
        assert_eq!(one.names(), ["prototypes.weight"]);
        let two = Prototypes::random(&[4, 5], 2, &mut rng()).expect("valid sizes");
        assert_eq!(two.names(), ["prototypes.prototypes0.weight", "prototypes.prototypes1.weight"]);
    }

    #[test]
    fn a_row_of_zeros_stays_finite() {
        let mut prototypes = Prototypes::from_weights(vec![array![[0.0, 0.0], [3.0, 4.0]]]).expect("finite");
        prototypes.normalise();
        assert_eq!(prototypes.weights(0).expect("exists"), array![[0.0, 0.0], [0.6, 0.8]]);
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let prototypes = Prototypes::random(&[6], 5, &mut rng()).expect("valid sizes");
        let z = Array2::random_using((4, 5), StandardNormal, &mut rng());
        let direction: Array2<f32> = Array2::random_using((4, 6), StandardNormal, &mut rng());
        let loss = |c: &Array2<f32>, z: &Array2<f32>| -> f64 {
            let c = c.mapv(f64::from);
            (z.mapv(f64::from).dot(&c.t()) * direction.mapv(f64::from)).sum()
        };
        let c = prototypes.weights(0).expect("exists").to_owned();
        let grad_c = prototypes.grad_weights(0, direction.view(), z.view()).expect("shapes fit");
        let grad_z = prototypes.grad_embeddings(0, direction.view()).expect("shapes fit");
        let h = 1e-2f32;
        for ((i, j), &g) in grad_c.indexed_iter() {
            let (mut up, mut down) = (c.clone(), c.clone());
            up[[i, j]] += h;
            down[[i, j]] -= h;
            assert!(((loss(&up, &z) - loss(&down, &z)) / f64::from(2.0 * h) - f64::from(g)).abs() < 1e-3);
        }
        for ((i, j), &g) in grad_z.indexed_iter() {
            let (mut up, mut down) = (z.clone(), z.clone());
            up[[i, j]] += h;
            down[[i, j]] -= h;
            assert!(((loss(&c, &up) - loss(&c, &down)) / f64::from(2.0 * h) - f64::from(g)).abs() < 1e-3);
        }
    }

    #[test]
    fn wrong_input_is_refused_by_name() {
        let prototypes = Prototypes::random(&[6], 5, &mut rng()).expect("valid sizes");
        let z = Array2::zeros((2, 4));
        assert_eq!(
            prototypes.scores(0, z.view()),
            Err(PrototypeError::Shape { what: "embedding dimension", expected: 5, got: 4 })
        );
        assert_eq!(prototypes.scores(1, z.view()), Err(PrototypeError::NoSuchHead { head: 1, n_heads: 1 }));
        assert_eq!(Prototypes::random(&[], 5, &mut rng()), Err(PrototypeError::Empty { what: "heads" }));
        assert!(matches!(
            Prototypes::from_weights(vec![array![[1.0, 0.0], [f32::NAN, 0.0]]]),
            Err(PrototypeError::NotFinite { head: 0, row: 1, got }) if got.is_nan()
        ));
    }

    #[test]
    fn freezing_counts_iterations_from_the_start() {
        let freeze = Freeze { n_iters: 2 };
        assert_eq!([0, 1, 2, 3].map(|i| freeze.allows_update(i)), [false, false, true, true]);
    }
}
