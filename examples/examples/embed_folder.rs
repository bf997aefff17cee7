//! Features of all images of a folder, from the weights of a run, an import or a file, as lines of CSV.
//!
//!     cargo run --release -p swav-examples --example embed_folder runs/photos ~/Pictures > features.csv

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = |index: usize| arguments.get(index).map(String::as_str);
    let (model, named) = swav_examples::model_and_images(path(0), path(1))?;

    let (names, images): (Vec<_>, Vec<_>) = named.into_iter().unzip();
    let features = model.embed(&images)?;

    for (name, row) in names.iter().zip(features.rows()) {
        let values: Vec<String> = row.iter().map(|value| format!("{value:.4}")).collect();
        println!("{name},{}", values.join(","));
    }
    Ok(())
}
