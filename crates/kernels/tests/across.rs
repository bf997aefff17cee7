//! Batch norm over two processes, here threads, against one process with the whole batch.

mod common;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use common::{error, parameters, slices, values, wide};
use swav_kernels::net::{Backward, BatchNorm1d, Block, BlockKind, Stem, Unit};
use swav_kernels::{Activations, BatchStats, Context, Error, Options, SumAcross};

/// One of two threads that add up.
#[derive(Debug)]
struct Half {
    to: Sender<Vec<f64>>,
    from: Mutex<Receiver<Vec<f64>>>,
}

impl Half {
    fn pair() -> [Self; 2] {
        let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
        [
            Self { to: to_second, from: Mutex::new(from_second) },
            Self { to: to_first, from: Mutex::new(from_first) },
        ]
    }
}

impl SumAcross for Half {
    fn sum(&self, values: &mut [f64]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.to.send(values.to_vec())?;
        let other = self.from.lock().map_err(|_| "poisoned")?.recv()?;
        for (value, other) in values.iter_mut().zip(other) {
            // A sum of two has the same bits on both sides.
            *value += other;
        }
        Ok(())
    }
}

fn context(across: Option<Half>) -> Context {
    let mut ctx = Context::new(Options { exact: true, ..Options::default() }).unwrap();
    ctx.set_sum_across(across.map(|half| Arc::new(half) as _));
    ctx
}

/// Output, statistics, the input's gradient and the parameters' gradients.
type Passes = (Vec<f32>, Vec<BatchStats>, Vec<f32>, Vec<Vec<f32>>);

/// Runs a unit on some of the images.
fn passes(ctx: &Context, unit: &dyn Unit, shape: [usize; 4], images: std::ops::Range<usize>) -> Passes {
    let params = parameters(unit, 10);
    let part = |shape: [usize; 4], seed: u64| {
        let (len, all) = (shape[1..].iter().product::<usize>(), values(shape.iter().product(), seed));
        let shape = [images.len(), shape[1], shape[2], shape[3]];
        // The halves' means differ.
        let some = all[images.start * len..images.end * len].iter().map(|v| v + 1.0).collect();
        Activations::from_f32(shape, some).unwrap()
    };
    let (out, saved) = unit.forward_train(ctx, part(shape, 1), &slices(&params)).unwrap();
    let stats = saved.stats().to_vec();
    let mut grads: Vec<Vec<f32>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
    let mut grad = part(unit.output_shape(shape).unwrap(), 2);
    grad.words.iter_mut().for_each(|g| *g -= 1.0);
    let words = out.words;
    let dx = unit
        .backward(
            ctx,
            Backward {
                saved,
                grad_output: grad,
                params: &slices(&params),
                grads: &mut grads,
                want_grad_input: true,
            },
        )
        .unwrap()
        .unwrap();
    (words, stats, dx.words, grads)
}

#[test]
fn two_halves_are_normalised_as_one_batch() {
    let units: [(Box<dyn Unit>, [usize; 4]); 6] = [
        (Box::new(BatchNorm1d::new(19, false)), [5, 1, 1, 19]),
        (Box::new(BatchNorm1d::new(19, true)), [3, 1, 1, 19]),
        (Box::new(Stem::cifar(16)), [3, 9, 8, 3]),
        (Box::new(Stem::imagenet(24)), [5, 21, 18, 3]),
        (Box::new(Block::new(BlockKind::Basic, 16, 32, 2)), [5, 7, 6, 16]),
        (Box::new(Block::new(BlockKind::Bottleneck, 32, 8, 1)), [4, 6, 6, 32]),
    ];
    for (unit, shape) in units {
        // Halves of different sizes.
        let (n, cut) = (shape[0], shape[0].div_ceil(2));
        let (out, stats, dx, grads) = passes(&context(None), unit.as_ref(), shape, 0..n);
        let [first, second] = std::thread::scope(|scope| {
            let unit = unit.as_ref();
            let [a, b] = Half::pair();
            let first = scope.spawn(move || passes(&context(Some(a)), unit, shape, 0..cut));
            let second = scope.spawn(move || passes(&context(Some(b)), unit, shape, cut..n));
            [first, second].map(|thread| thread.join().unwrap())
        });
        let close = |what: &str, got: &[f32], expected: &[f32]| {
            let error = error(got, &wide(expected));
            assert!(error < 1e-5, "{what} of {unit:?}: {error:e}");
        };
        close("output", &[first.0, second.0].concat(), &out);
        close("input gradient", &[first.2, second.2].concat(), &dx);
        for (whole, (a, b)) in stats.iter().zip(first.1.iter().zip(&second.1)) {
            // Both halves have the same statistics, to the bit.
            assert_eq!((a, a.count), (b, whole.count), "{unit:?}");
            close("mean", &a.mean, &whole.mean);
            close("variance", &a.var, &whole.var);
        }
        for ((whole, a), b) in grads.iter().zip(&first.3).zip(&second.3) {
            let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            close("gradient of a parameter", &sum, whole);
        }
    }
}

#[test]
fn a_sum_that_fails_is_an_error_with_its_cause() {
    let [half, gone] = Half::pair();
    drop(gone);
    let (ctx, unit) = (context(Some(half)), BatchNorm1d::new(3, false));
    let params = parameters(&unit, 1);
    let input = Activations::from_f32([2, 1, 1, 3], values(6, 1)).unwrap();
    let error = unit.forward_train(&ctx, input, &slices(&params)).unwrap_err();
    assert!(matches!(error, Error::SumAcross { .. }));
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn the_whole_batch_has_to_have_two_values_per_channel() {
    #[derive(Debug)]
    struct Alone;
    impl SumAcross for Alone {
        fn sum(&self, _: &mut [f64]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            Ok(())
        }
    }
    let mut ctx = context(None);
    ctx.set_sum_across(Some(Arc::new(Alone)));
    let unit = BatchNorm1d::new(3, false);
    let params = parameters(&unit, 1);
    let input = Activations::from_f32([1, 1, 1, 3], values(3, 1)).unwrap();
    let error = unit.forward_train(&ctx, input, &slices(&params)).unwrap_err();
    assert!(matches!(error, Error::TooFewForBatchNorm { got: 1 }));
}
