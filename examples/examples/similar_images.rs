//! The images of a folder that are most similar to one of them, by the cosine of their features.
//!
//!     cargo run --release -p swav-examples --example similar_images runs/photos ~/Pictures cat.jpg

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = |index: usize| arguments.get(index).map(String::as_str);
    let (model, named) = swav_examples::model_and_images(path(0), path(1))?;
    let (names, images): (Vec<_>, Vec<_>) = named.into_iter().unzip();
    let query = path(2).unwrap_or(&names[0]);
    let query =
        names.iter().position(|name| name == query).with_context(|| format!("no image is called {query}"))?;

    let mut features = model.embed(&images)?;
    for mut row in features.rows_mut() {
        let length = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
        row /= length;
    }
    let similarities = features.dot(&features.row(query));

    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]));
    println!("most similar to {}:", names[query]);
    for &index in order.iter().filter(|&&index| index != query).take(5) {
        println!("  {:.3}  {}", similarities[index], names[index]);
    }
    Ok(())
}
