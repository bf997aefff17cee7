//! in-tract MODEL NUMBERS SHAPE OUT [free]: runs an ONNX file on raw little-endian numbers (floats, or bytes if there are as many
//! as the shape has), and writes all outputs one after the other. With `free` the extents of the input stay unknown until it
//! runs; without, the graph is optimised for this very shape.

use std::error::Error;

use tract_onnx::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, numbers, shape, out, free @ ..] = arguments.as_slice() else {
        return Err("expected MODEL NUMBERS SHAPE OUT [free]".into());
    };
    let shape = shape.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let bytes = std::fs::read(numbers)?;
    let input = if shape.iter().product::<usize>() == bytes.len() {
        Tensor::from_shape(&shape, &bytes)?
    } else {
        let (floats, _) = bytes.as_chunks::<4>();
        let floats: Vec<f32> = floats.iter().map(|&float| f32::from_le_bytes(float)).collect();
        Tensor::from_shape(&shape, &floats)?
    };
    let mut model = tract_onnx::onnx().model_for_path(model)?;
    if free.is_empty() {
        model.set_input_fact(0, InferenceFact::dt_shape(input.datum_type(), &shape))?;
    }
    let outputs = model.into_optimized()?.into_runnable()?.run(tvec!(input.into()))?;
    let mut values = Vec::new();
    for output in &outputs {
        values.extend(output.as_slice::<f32>()?.iter().flat_map(|value| value.to_le_bytes()));
    }
    Ok(std::fs::write(out, values)?)
}
