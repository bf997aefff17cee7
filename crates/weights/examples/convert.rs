//! A network from one kind of file to another: what comes out is told by the ending of its name.
//!
//!     cargo run --release -p swav-weights --example convert -- IN.pth OUT.safetensors
//!     cargo run --release -p swav-weights --example convert -- IN.pth OUT.onnx fold bytes

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use swav_weights::export::{self, Onnx, OnnxOptions, Part};
use swav_weights::{Import, Metadata, WeightsFile, write_file};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, flags @ ..] = arguments.as_slice() else {
        println!("usage: convert IN OUT [fold] [bytes]");
        return Ok(());
    };
    let begin = Instant::now();
    let import = Import::read(&mut WeightsFile::open(from)?, None)?;
    println!("{:?}: {:?}, in {:.2} s", import.encoder.arch, import.account, begin.elapsed().as_secs_f64());

    let begin = Instant::now();
    let preprocessing = import.preprocessing_or_usual();
    let mut metadata = Metadata::new();
    preprocessing.enter(&mut metadata);
    let mut state = import.state;
    let part = if import.prototypes.is_empty() { Part::Head } else { Part::Prototypes };
    import.prototypes.into_iter().for_each(|(name, tensor)| drop(state.insert(name, tensor)));
    let all: Vec<_> = state.iter().collect();
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let options =
        OnnxOptions { part, fold_batch_norm: has("fold"), normalize: has("bytes").then_some(preprocessing) };
    let path = Path::new(to);
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => write_file(path, |to| export::safetensors(to, &all, &metadata))?,
        Some("pth") => write_file(path, |to| export::torch(to, &all))?,
        Some("onnx") => {
            let graph = Onnx::new(&import.encoder, &state, &options, &metadata)?;
            write_file(path, |to| graph.write(to))?;
        }
        _ => return Err("expected a name that ends in .safetensors, .pth or .onnx".into()),
    }
    println!("{to} in {:.2} s", begin.elapsed().as_secs_f64());
    Ok(())
}
