//! Prototypes with their images, the map, the confusion and the crops: what needs the network and the images.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use anyhow::Context;
use ndarray::{Array2, s};
use swav_augment::{Canvas, CenterCrop, CropKey, Image, Resizer, Scratch};
use swav_data::{Dataset, SampleError, Subset, spread};
use swav_encoder::Output;
use swav_eval::{KnnClassifier, KnnConfig};
use swav_report::{
    Confusion, Crops, Map, Projection, Prototype, Prototypes, Report, Thumbnails, principal_components,
};

use super::Trained;
use crate::judge::counter;

/// Sides of the pictures of map, prototypes and crops.
const POINT: usize = 48;
const NEAREST: usize = 64;
const CROP: usize = 96;
/// Prototypes of each group, and images of each.
const N_PROTOTYPES: usize = 6;
const N_NEAREST: usize = 10;
/// Images whose crops are shown.
const N_CROPPED: usize = 6;
/// Images that the confusion is made of.
const N_CONFUSED: usize = 3000;

/// Adds all of it.
pub(super) fn add(
    report: &mut Report,
    trained: Trained,
    max_images: usize,
    max_points: usize,
) -> anyhow::Result<()> {
    let n_images = trained.data.len();
    report.crops = Some(crops(&trained)?);
    let chosen = spread(n_images, if max_images == 0 { n_images } else { max_images });
    let on_map: Vec<usize> =
        spread(chosen.len(), max_points.max(1)).into_iter().map(|at| chosen[at]).collect();
    let watched = Arc::new(Watched::new(trained.data.clone(), &on_map));
    let subset = Subset::new(watched.clone(), chosen.iter().copied())?;
    let features = swav_eval::encode(
        trained.encoder.as_ref(),
        &subset,
        trained.settings.eval_view(),
        Output::Embedding,
        Some(&mut counter("embeddings", subset.len())),
    )?;
    let images: Vec<usize> = features.indices.iter().map(|&at| chosen[at]).collect();
    if !features.rows.iter().all(|x| x.is_finite()) {
        report.notes.push("The network gives embeddings that are not finite, so there is no map.".to_owned());
        return Ok(());
    }
    let clusters = nearest_prototypes(&features.rows, &trained.prototypes);
    let embedded = Embedded { images, rows: features.rows, clusters };
    report.prototypes = Some(prototypes(&trained, &embedded));
    report.map = map(&trained, &embedded, &watched, &on_map);
    report.confusion = confusion(&trained).context("confusion")?;
    Ok(())
}

/// Images with their embeddings and prototypes.
struct Embedded {
    images: Vec<usize>,
    rows: Array2<f32>,
    clusters: Vec<u32>,
}

/// A data set that makes pictures of some images while they pass, so that each is read once.
struct Watched {
    inner: Arc<dyn Dataset>,
    pictures: Mutex<HashMap<usize, Option<Vec<u8>>>>,
}

impl Watched {
    fn new(inner: Arc<dyn Dataset>, wanted: &[usize]) -> Self {
        Self { inner, pictures: Mutex::new(wanted.iter().map(|&index| (index, None)).collect()) }
    }

    fn take(&self, index: usize) -> Option<Vec<u8>> {
        self.pictures.lock().expect("no thread panics while it holds the pictures").remove(&index)?
    }
}

impl Dataset for Watched {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn image(&self, index: usize) -> Result<Arc<Image>, SampleError> {
        let image = self.inner.image(index)?;
        let held = || self.pictures.lock().expect("no thread panics while it holds the pictures");
        if held().contains_key(&index) {
            let picture = square(&image, POINT);
            held().insert(index, Some(picture));
        }
        Ok(image)
    }

    fn label(&self, index: usize) -> Option<u32> {
        self.inner.label(index)
    }

    fn name(&self, index: usize) -> String {
        self.inner.name(index)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// The middle of an image as RGB bytes.
fn square(image: &Image, side: usize) -> Vec<u8> {
    let mut canvas = Canvas::default();
    CenterCrop { resize: side, size: side }.apply(image.view(), &mut Resizer::default(), &mut canvas);
    canvas.to_rgb_bytes()
}

/// The prototype with the largest score for each row.
fn nearest_prototypes(rows: &Array2<f32>, prototypes: &Array2<f32>) -> Vec<u32> {
    const BLOCK: usize = 1024;
    let mut nearest = Vec::with_capacity(rows.nrows());
    for first in (0..rows.nrows()).step_by(BLOCK) {
        let last = (first + BLOCK).min(rows.nrows());
        let scores = rows.slice(s![first..last, ..]).dot(&prototypes.t());
        nearest.extend(scores.rows().into_iter().map(|row| {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            best.map_or(0, |(prototype, _)| prototype as u32)
        }));
    }
    nearest
}

/// A number alone would be taken for a share.
fn class_name(data: &dyn Dataset, label: u32) -> String {
    match data.class_names().get(label as usize) {
        Some(name) if name.parse::<u64>().is_err() => name.clone(),
        Some(number) => format!("class {number}"),
        None => format!("class {label}"),
    }
}

fn prototypes(trained: &Trained, embedded: &Embedded) -> Prototypes {
    let data = trained.data.as_ref();
    let k = trained.prototypes.nrows();
    let mut counts = vec![0usize; k];
    embedded.clusters.iter().for_each(|&cluster| counts[cluster as usize] += 1);
    let mut by_use: Vec<usize> = (0..k).collect();
    by_use.sort_by_key(|&prototype| (Reverse(counts[prototype]), prototype));
    let n_used = counts.iter().filter(|&&count| count > 0).count();
    let most: Vec<usize> = by_use.iter().copied().take(N_PROTOTYPES).collect();
    let least: Vec<usize> = by_use
        .iter()
        .rev()
        .copied()
        .filter(|prototype| !most.contains(prototype))
        .take(N_PROTOTYPES)
        .collect();
    let mut sheet = Thumbnails::new(NEAREST, N_NEAREST);
    let mut group = |chosen: &[usize]| -> Vec<Prototype> {
        let one = |&prototype: &usize| {
            let scores = embedded.rows.dot(&trained.prototypes.row(prototype));
            let mut order: Vec<usize> = (0..scores.len()).collect();
            let n = N_NEAREST.min(order.len());
            let key = |&at: &usize| (Reverse(ordered(scores[at])), at);
            if n > 0 {
                order.select_nth_unstable_by_key(n - 1, key);
            }
            order.truncate(n);
            order.sort_by_key(key);
            let nearest = order.into_iter().map(|at| {
                let index = embedded.images[at];
                let pixels = data.image(index).map(|image| square(&image, NEAREST)).unwrap_or_default();
                (sheet.push(NEAREST, &pixels), data.name(index), scores[at])
            });
            let nearest = nearest.collect();
            Prototype {
                number: prototype,
                n_images: counts[prototype],
                note: classes_of(data, embedded, prototype),
                nearest,
            }
        };
        chosen.iter().map(one).collect()
    };
    let groups = vec![("Most used".to_owned(), group(&most)), ("Least used".to_owned(), group(&least))];
    let note = format!(
        "{n_used} of {k} prototypes are the nearest one of at least one image ({} images, at step {}). Each with the images \
         that are nearest to it.",
        embedded.images.len(),
        trained.step
    );
    let groups = groups.into_iter().filter(|(_, prototypes)| !prototypes.is_empty()).collect();
    Prototypes { note, groups, pictures: sheet.finish() }
}

/// A number that sorts as the float does.
fn ordered(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ (((bits >> 31) as u32) >> 1) as i32
}

/// The most frequent classes of a prototype's images.
fn classes_of(data: &dyn Dataset, embedded: &Embedded, prototype: usize) -> String {
    let mut classes: BTreeMap<u32, usize> = BTreeMap::new();
    let own =
        embedded.images.iter().zip(&embedded.clusters).filter(|(_, cluster)| **cluster as usize == prototype);
    own.filter_map(|(&index, _)| data.label(index)).for_each(|label| *classes.entry(label).or_default() += 1);
    let total: usize = classes.values().sum();
    let mut classes: Vec<(u32, usize)> = classes.into_iter().collect();
    classes.sort_by_key(|&(label, count)| (Reverse(count), label));
    let shown = classes.iter().take(2).filter(|(_, count)| 100 * count >= total).map(|&(label, count)| {
        format!("{} {:.0}%", class_name(data, label), 100.0 * count as f64 / total as f64)
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn map(trained: &Trained, embedded: &Embedded, watched: &Watched, on_map: &[usize]) -> Option<Map> {
    let data = trained.data.as_ref();
    let rows: Vec<usize> =
        (0..embedded.images.len()).filter(|&at| on_map.binary_search(&embedded.images[at]).is_ok()).collect();
    if rows.len() < 3 {
        return None;
    }
    let dim = embedded.rows.ncols();
    let values: Vec<f32> = rows.iter().flat_map(|&at| embedded.rows.row(at).to_vec()).collect();
    let mut projections = by_neighbours(&values, dim);
    let plane = principal_components(&values, dim);
    let [x, y] = plane.variance.map(|share| 100.0 * share);
    let name = format!("principal components ({x:.0}% and {y:.0}% of the variance)");
    projections.push(Projection { name, plane });
    let images: Vec<usize> = rows.iter().map(|&at| embedded.images[at]).collect();
    let mut sheet = Thumbnails::new(POINT, 40);
    for &index in &images {
        sheet.push(POINT, &watched.take(index).unwrap_or_default());
    }
    let labels: Vec<i64> = images.iter().map(|&index| data.label(index).map_or(-1, i64::from)).collect();
    let is_labelled = labels.iter().any(|&label| label >= 0);
    let n_classes = usize::try_from(labels.iter().max().copied().unwrap_or(-1) + 1).unwrap_or(0);
    let classes = (0..n_classes as u32).map(|label| class_name(data, label)).collect();
    Some(Map {
        note: format!("{} of {} images, at step {}.", images.len(), data.len(), trained.step),
        projections,
        names: images.iter().map(|&index| data.name(index)).collect(),
        labels: if is_labelled { labels } else { Vec::new() },
        classes,
        clusters: rows.iter().map(|&at| embedded.clusters[at]).collect(),
        pictures: sheet.finish(),
    })
}

/// The map that keeps neighbours together, if this build has it.
#[cfg(feature = "tsne")]
fn by_neighbours(values: &[f32], dim: usize) -> Vec<Projection> {
    let plane = swav_report::tsne(values, dim);
    plane.map(|plane| Projection { name: "t-SNE".to_owned(), plane }).into_iter().collect()
}

/// This build has no such map.
#[cfg(not(feature = "tsne"))]
fn by_neighbours(_values: &[f32], _dim: usize) -> Vec<Projection> {
    Vec::new()
}

/// Which class k-NN on the features takes each labelled image for, leaving it out.
fn confusion(trained: &Trained) -> anyhow::Result<Option<Confusion>> {
    let data = &trained.data;
    let labelled: Vec<usize> = (0..data.len()).filter(|&index| data.label(index).is_some()).collect();
    let chosen: Vec<usize> = spread(labelled.len(), N_CONFUSED).into_iter().map(|at| labelled[at]).collect();
    let knn = KnnConfig::default();
    let n_classes =
        chosen.iter().filter_map(|&index| data.label(index)).max().map_or(0, |label| label as usize + 1);
    // Beyond this a table is of no use to anybody.
    if chosen.len() <= knn.k || !(2..=200).contains(&n_classes) {
        return Ok(None);
    }
    let subset = Subset::new(data.clone(), chosen)?;
    let view = trained.settings.eval_view();
    let mut progress = counter("features", subset.len());
    let features =
        swav_eval::encode(trained.encoder.as_ref(), &subset, view, Output::Features, Some(&mut progress))?;
    let labels = features.labels(&subset)?;
    if features.rows.nrows() <= knn.k {
        return Ok(None);
    }
    let predictions = KnnClassifier::new(knn.check()?, features.rows, labels.clone())?.leave_one_out()?;
    let mut counts = vec![vec![0u32; n_classes]; n_classes];
    let mut right = 0;
    for (&label, ranked) in labels.iter().zip(&predictions.ranked) {
        let Some(&taken_for) = ranked.first() else { continue };
        counts[label as usize][taken_for as usize] += 1;
        right += usize::from(label == taken_for);
    }
    let note = format!(
        "k-NN (k = {}) on the features of {} training images, each classified by all others: {:.1}% right.",
        knn.k,
        labels.len(),
        100.0 * right as f64 / labels.len() as f64
    );
    let classes = (0..n_classes as u32).map(|label| class_name(data.as_ref(), label)).collect();
    Ok(Some(Confusion { note, classes, counts }))
}

/// Images beside their crops in the first epoch.
fn crops(trained: &Trained) -> anyhow::Result<Crops> {
    let (data, recipe) = (trained.data.as_ref(), trained.settings.multi_crop());
    let seed = trained.settings.config().training.seed;
    let n_columns = 1 + recipe.n_crops();
    let mut columns = vec!["image".to_owned()];
    for crop in 0..recipe.n_crops() {
        let (group, _) = recipe.locate(crop).context("a crop is of a group")?;
        columns.push(format!("{} px", recipe.groups()[group].crop.size));
    }
    let (mut sheet, mut rows, mut scratch) =
        (Thumbnails::new(CROP, n_columns), Vec::new(), Scratch::default());
    for index in spread(data.len(), N_CROPPED) {
        // An image that cannot be read has no crops; others are shown.
        let Ok(image) = data.image(index) else { continue };
        sheet.push(CROP, &square(&image, CROP));
        for crop in 0..recipe.n_crops() {
            let (group, _) = recipe.locate(crop).context("a crop is of a group")?;
            let size = recipe.groups()[group].crop.size;
            let mut pixels = vec![0.0; size * size * 3];
            let key = CropKey { seed, epoch: 0, sample: index as u64, crop: crop as u64 };
            recipe.fill(image.view(), key, &mut pixels, &mut scratch)?;
            sheet.push(size, &recipe.normalize().invert(&pixels));
        }
        rows.push(data.name(index));
    }
    let note = "What the network was shown of these images in the first epoch: codes are computed of the first crops, and \
                predicted from all others.";
    Ok(Crops { note: note.to_owned(), columns, rows, pictures: sheet.finish() })
}
