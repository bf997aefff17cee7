//! Several processes, here threads, that train one encoder on parts of a batch.

use std::sync::Arc;

use ndarray::{Array2, Axis, concatenate, s};
use swav_collective::{Collective, CollectiveError, InMemory};

use super::{devices, encoder, gradient, images, norm, small};
use crate::{BlockKind, Encoder, EncoderConfig, EncoderError, Head, Stem, SyncBatchNorm};

fn config() -> EncoderConfig {
    small(BlockKind::Bottleneck, Stem::Cifar, Head::Mlp { hidden: 7 })
}

/// What a rank has after a step: embeddings, gradients by name, statistics of the head's batch norm.
type Step = (Array2<f32>, Vec<(String, Vec<f32>)>, Vec<f32>);

fn results(encoder: &dyn Encoder, z: Array2<f32>) -> Step {
    let names = encoder.parameters().into_iter();
    let gradients = names.map(|(name, _)| (name.clone(), encoder.gradient(&name).unwrap())).collect();
    let state = encoder.state().unwrap();
    (z, gradients, state.get("projection_head.1.running_var").unwrap().data().to_vec())
}

/// One rank's step on rows `first..first + 3` of six images at two resolutions.
fn part(rank: InMemory, device: &str, batch_norm: SyncBatchNorm, of_z: &Array2<f32>) -> Step {
    let first = 3 * rank.rank();
    let rank: Arc<dyn Collective> = Arc::new(rank);
    let mut encoder = encoder(device, &config());
    encoder.join(Arc::clone(&rank), batch_norm).unwrap();
    let groups = [images(6, 12, 12, 1), images(6, 8, 8, 2)];
    let own = groups.each_ref().map(|group| group.slice(s![first..first + 3, .., .., ..]));
    let z = encoder.forward_train(&own).unwrap();
    // The mean over the ranks of the gradients of their parts is the gradient of the whole.
    let rows = |start: usize| of_z.slice(s![start + first..start + first + 3, ..]);
    let gradient = concatenate(Axis(0), &[rows(0), rows(6)]).unwrap() * 2.0;
    encoder.backward(gradient.view()).unwrap();
    encoder.reduce_gradients(rank.as_ref()).unwrap();
    results(&*encoder, z)
}

fn ranks(device: &str, batch_norm: SyncBatchNorm, of_z: &Array2<f32>) -> Vec<Step> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (InMemory::group(2).into_iter())
            .map(|rank| scope.spawn(move || part(rank, device, batch_norm, of_z)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn synchronised_ranks_do_what_one_process_does() {
    let mut whole = encoder("cpu", &config());
    let z = whole.forward_train(&[images(6, 12, 12, 1).view(), images(6, 8, 8, 2).view()]).unwrap();
    let of_z = gradient(&z, 3);
    whole.backward(of_z.view()).unwrap();
    let (z, gradients, statistics) = results(&*whole, z);
    let largest = gradients.iter().map(|(_, values)| norm(values)).fold(0.0, f64::max);
    for (rank, (z_part, reduced, statistics_part)) in
        ranks("cpu", SyncBatchNorm::On, &of_z).into_iter().enumerate()
    {
        for (row, start) in [(0, 3 * rank), (3, 6 + 3 * rank)] {
            let (a, e) = (z_part.slice(s![row..row + 3, ..]), z.slice(s![start..start + 3, ..]));
            assert!((&a - &e).iter().all(|d| d.abs() < 1e-5), "rank {rank}: {a} against {e}");
        }
        for ((name, actual), (_, expected)) in reduced.iter().zip(&gradients) {
            let difference: Vec<f32> = actual.iter().zip(expected).map(|(a, e)| a - e).collect();
            let error = norm(&difference) / norm(expected).max(1e-4 * largest);
            assert!(error < 1e-3, "rank {rank}: {name}: {error:e}");
        }
        assert!(super::relative(&statistics_part, &statistics) < 1e-5);
    }
}

#[test]
fn gradients_are_averaged_on_every_device() {
    let of_z = gradient(&Array2::zeros((12, 5)), 3);
    for device in devices() {
        let [(_, one, _), (_, two, _)] = &ranks(&device, SyncBatchNorm::Off, &of_z)[..] else {
            panic!("two ranks")
        };
        let (_, alone, _) = part(InMemory::group(1).remove(0), &device, SyncBatchNorm::Off, &of_z);
        for (((name, one), (_, two)), (_, alone)) in one.iter().zip(two).zip(&alone) {
            assert_eq!(super::bits(one), super::bits(two), "{device}: {name}");
            if name == "conv1.weight" {
                assert_ne!(one, alone, "{device}: the second rank's images count");
            }
        }
    }
}

#[test]
fn a_device_that_cannot_synchronise_refuses() {
    let group = InMemory::group(1).remove(0);
    let error = encoder("dfdx:cpu", &config()).join(Arc::new(group), SyncBatchNorm::On).unwrap_err();
    assert!(matches!(error, EncoderError::Unsupported { .. }), "{error}");
}

#[test]
fn a_rank_that_has_gone_ends_the_passes_of_the_others() {
    let [one, two]: [InMemory; 2] = InMemory::group(2).try_into().ok().unwrap();
    let mut encoder = encoder("cpu", &config());
    encoder.join(Arc::new(one), SyncBatchNorm::On).unwrap();
    two.abort("no more images");
    let error = encoder.forward_train(&[images(4, 8, 8, 1).view()]).unwrap_err();
    assert!(
        matches!(&error, EncoderError::Collective(CollectiveError::Aborted { rank: 1, .. })),
        "{error:?}"
    );
}
