//! Times the three passes of one convolution: `one_conv IMAGES SIDE C_IN C_OUT KERNEL STRIDE [exact]`.

use std::time::Instant;

use swav_kernels::{Activations, Context, ConvSpec, Options, ops, peak_flops};

#[global_allocator]
static ALLOCATOR: swav_kernels::AlignedAllocator = swav_kernels::AlignedAllocator;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let n: Vec<usize> = args.iter().filter_map(|a| a.parse().ok()).collect();
    let [images, side, c_in, c_out, kernel, stride] = n[..] else { return Err("six numbers".into()) };
    let exact = args.iter().any(|a| a == "exact");
    let ctx = Context::new(Options { exact, ..Options::default() })?;
    let spec = ConvSpec { c_in, c_out, kernel, stride, padding: kernel / 2 };
    let noise = |n: usize| -> Vec<f32> { (0..n).map(|i| ((i * 7919) % 1001) as f32 / 500.0 - 1.0).collect() };
    let shape = [images, side, side, c_in];
    let x = Activations::from_f32(shape, noise(shape.iter().product()))?;
    let out = spec.output_shape(shape);
    let dy = Activations::from_f32(out, noise(out.iter().product()))?;
    let weights = noise(spec.weight_len());
    let mut grad = vec![0.0; spec.weight_len()];
    let peak = peak_flops(&ctx);
    let mut passes: [(&str, f64); 3] = [("forward", f64::MAX), ("data", f64::MAX), ("weights", f64::MAX)];
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < 1.5 {
        for (i, pass) in passes.iter_mut().enumerate() {
            let start = Instant::now();
            match i {
                0 => ctx.recycle(ops::conv_forward(&ctx, &spec, &x, &weights)?),
                1 => ctx.recycle(ops::conv_backward_data(&ctx, &spec, shape, &dy, &weights)?),
                _ => ops::conv_backward_weights(&ctx, &spec, &x, &dy, &mut grad)?,
            }
            pass.1 = pass.1.min(start.elapsed().as_secs_f64());
        }
    }
    for (name, seconds) in passes {
        let rate = spec.flops(shape) / seconds;
        print!("{name} {:.0} GFLOP/s ({:.0}%)  ", rate / 1e9, 100.0 * rate / peak);
    }
    println!("of {:.0}", peak / 1e9);
    Ok(())
}
