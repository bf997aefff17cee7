//! The feature queue: embeddings of past batches that join the current one when codes are computed.

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Axis, s};

use crate::error::PrototypeError;
use crate::mutants::{mutated, stale};
use crate::prototypes::Prototypes;

/// Past embeddings, one list for each assignment crop, newest first.
///
/// With a batch much smaller than the number of prototypes, equal partition over the batch alone is a bad
/// target. The queue adds `length` earlier embeddings to it (Caron et al. 2020, section 3, "Working with
/// small batches"). Its rules are the reference's (`main_swav.py`):
/// - a list takes part only once it is full (its last row is no longer zero);
/// - its rows stand before the batch, and are scored with today's prototypes;
/// - after each step the batch is put in front and the oldest rows leave.
///
/// The rows are constants: no gradient flows into them.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureQueue {
    rows: Array3<f32>,
    batch_size: usize,
    filled: Vec<usize>,
}

impl FeatureQueue {
    /// The length that is used when `length` is wished for: rounded down to a multiple of the batch size
    /// that all processes make together.
    pub fn usable_length(length: usize, global_batch_size: usize) -> usize {
        match global_batch_size {
            0 => 0,
            batch => length - length % batch,
        }
    }

    /// An empty queue of `length` rows of dimension `dim` for each of `n_assign` assignment crops.
    ///
    /// # Errors
    /// [`PrototypeError::QueueLength`] if `length` is not a positive multiple of `batch_size`;
    /// [`PrototypeError::Empty`] if another extent is 0.
    pub fn new(
        n_assign: usize,
        length: usize,
        dim: usize,
        batch_size: usize,
    ) -> Result<Self, PrototypeError> {
        Self::from_rows(Array3::zeros((n_assign, length, dim)), batch_size, vec![0; n_assign])
    }

    /// A queue as [`rows`](Self::rows) and [`filled`](Self::filled) gave it, to resume from a checkpoint.
    ///
    /// # Errors
    /// As [`FeatureQueue::new`]; [`PrototypeError::Shape`] if the counts of `filled` do not fit.
    pub fn from_rows(
        rows: Array3<f32>,
        batch_size: usize,
        filled: Vec<usize>,
    ) -> Result<Self, PrototypeError> {
        let (n_assign, length, dim) = rows.dim();
        for (what, extent) in [("assignment crops", n_assign), ("embedding dimension", dim)] {
            if extent == 0 {
                return Err(PrototypeError::Empty { what });
            }
        }
        if batch_size == 0 || length == 0 || !length.is_multiple_of(batch_size) {
            return Err(PrototypeError::QueueLength { length, batch_size });
        }
        if filled.len() != n_assign {
            return Err(PrototypeError::Shape { what: "fill counts", expected: n_assign, got: filled.len() });
        }
        if let Some(&got) = filled.iter().find(|&&n| n > length || !n.is_multiple_of(batch_size)) {
            return Err(PrototypeError::Shape { what: "filled rows of the queue", expected: length, got });
        }
        Ok(Self { rows, batch_size, filled })
    }

    /// Rows of each list.
    pub fn length(&self) -> usize {
        self.rows.dim().1
    }

    /// Rows that each step puts in.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Number of assignment crops, that is of lists.
    pub fn n_assign(&self) -> usize {
        self.rows.dim().0
    }

    /// All rows (assignment crop, position, dimension), newest first; zero where not filled yet.
    pub fn rows(&self) -> ArrayView3<'_, f32> {
        self.rows.view()
    }

    /// How many rows of each list have been filled.
    pub fn filled(&self) -> &[usize] {
        &self.filled
    }

    /// Whether the list of assignment crop number `index` takes part in the codes.
    pub fn is_ready(&self, index: usize) -> bool {
        self.filled.get(index).is_some_and(|&n| n == self.length())
    }

    /// The scores that codes are computed from: those of the queue under today's `prototypes`, if list
    /// `index` is full, then `batch_scores` (B, K). The batch's are the last B rows.
    ///
    /// # Errors
    /// Shapes that do not fit the prototypes.
    pub fn with_batch(
        &self,
        index: usize,
        prototypes: &Prototypes,
        head: usize,
        batch_scores: ArrayView2<'_, f32>,
    ) -> Result<Array2<f32>, PrototypeError> {
        self.check_index(index)?;
        let stale = if mutated("stale-queue-scores") { stale(index, prototypes) } else { None };
        if !self.is_ready(index) {
            return Ok(batch_scores.to_owned());
        }
        let k = prototypes.n_prototypes(head)?;
        check("prototypes in the scores", k, batch_scores.ncols())?;
        let prototypes = stale.as_ref().unwrap_or(prototypes);
        let queued = prototypes.scores(head, self.rows.index_axis(Axis(0), index))?;
        let parts = [queued.view(), batch_scores];
        let [first, second] = if mutated("queue-after-batch") { [parts[1], parts[0]] } else { parts };
        let mut all = Array2::zeros((queued.nrows() + batch_scores.nrows(), k));
        all.slice_mut(s![..first.nrows(), ..]).assign(&first);
        all.slice_mut(s![first.nrows().., ..]).assign(&second);
        Ok(all)
    }

    /// Puts a batch's embeddings (B, D) in front of list `index`; the oldest B rows leave.
    ///
    /// # Errors
    /// A list that does not exist, a batch or dimension of another size.
    pub fn push(&mut self, index: usize, embeddings: ArrayView2<'_, f32>) -> Result<(), PrototypeError> {
        self.check_index(index)?;
        let batch = self.batch_size;
        check("rows of the batch", batch, embeddings.nrows())?;
        check("embedding dimension", self.rows.dim().2, embeddings.ncols())?;
        let (length, dim) = (self.length(), self.rows.dim().2);
        let mut list = self.rows.index_axis_mut(Axis(0), index);
        let flat =
            list.as_slice_mut().expect("a list of a queue is contiguous: the outermost axis is indexed");
        flat.copy_within(..(length - batch) * dim, batch * dim);
        list.slice_mut(s![..batch, ..]).assign(&embeddings);
        self.filled[index] = (self.filled[index] + batch).min(length);
        Ok(())
    }

    fn check_index(&self, index: usize) -> Result<(), PrototypeError> {
        if index < self.n_assign() {
            Ok(())
        } else {
            Err(PrototypeError::Shape {
                what: "index of the assignment crop",
                expected: self.n_assign() - 1,
                got: index,
            })
        }
    }
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<(), PrototypeError> {
    if expected == got { Ok(()) } else { Err(PrototypeError::Shape { what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, array};

    fn batch(value: f32) -> Array2<f32> {
        Array2::from_elem((2, 2), value)
    }

    #[test]
    fn shifts_by_a_batch_and_is_used_once_full() {
        let mut queue = FeatureQueue::new(1, 4, 2, 2).expect("valid");
        assert!(!queue.is_ready(0));
        queue.push(0, batch(1.0).view()).expect("fits");
        assert!(!queue.is_ready(0));
        queue.push(0, batch(2.0).view()).expect("fits");
        assert!(queue.is_ready(0));
        queue.push(0, batch(3.0).view()).expect("fits");
        let column: Vec<f32> = queue.rows().slice(s![0, .., 0]).to_vec();
        assert_eq!(column, [3.0, 3.0, 2.0, 2.0]);
    }

    #[test]
    fn queued_rows_come_first_under_todays_prototypes() {
        let prototypes = Prototypes::from_weights(vec![array![[1.0, 0.0], [0.0, 2.0]]]).expect("finite");
        let mut queue = FeatureQueue::new(1, 2, 2, 2).expect("valid");
        let scores = array![[9.0, 9.0], [8.0, 8.0]];
        assert_eq!(queue.with_batch(0, &prototypes, 0, scores.view()).expect("fits"), scores);
        queue.push(0, array![[1.0, 1.0], [0.5, 0.0]].view()).expect("fits");
        assert_eq!(
            queue.with_batch(0, &prototypes, 0, scores.view()).expect("fits"),
            array![[1.0, 2.0], [0.5, 0.0], [9.0, 9.0], [8.0, 8.0]]
        );
    }

    #[test]
    fn length_is_rounded_down_to_whole_batches() {
        assert_eq!(FeatureQueue::usable_length(3840, 256), 3840);
        assert_eq!(FeatureQueue::usable_length(3840, 1000), 3000);
        assert_eq!(FeatureQueue::usable_length(10, 256), 0);
        assert_eq!(FeatureQueue::usable_length(10, 0), 0);
    }

    #[test]
    fn survives_a_round_trip_and_refuses_other_sizes() {
        let mut queue = FeatureQueue::new(2, 4, 2, 2).expect("valid");
        queue.push(1, batch(1.0).view()).expect("fits");
        let again =
            FeatureQueue::from_rows(queue.rows().to_owned(), 2, queue.filled().to_vec()).expect("valid");
        assert_eq!(queue, again);
        assert_eq!(
            FeatureQueue::new(1, 5, 2, 2),
            Err(PrototypeError::QueueLength { length: 5, batch_size: 2 })
        );
        assert!(matches!(
            queue.push(0, Array2::zeros((3, 2)).view()),
            Err(PrototypeError::Shape { expected: 2, got: 3, .. })
        ));
        assert!(matches!(queue.push(2, batch(0.0).view()), Err(PrototypeError::Shape { .. })));
    }
}
