//! The widest AVX-512 tiles must keep their 28 accumulators in registers: spilled ones cost more than half of the speed.
//! Reads this program's own machine code with `objdump`, which comes with a C compiler's binutils. The workspace's profiles
//! compile the kernels optimised for tests too, without debug assertions, with which compilers spill.
#![cfg(target_arch = "x86_64")]

use std::process::Command;

use swav_kernels::{Activations, Context, ConvSpec, Options, Precision, ops};

/// Products in one step of the tile of 14 rows and 2 vectors; compilers unroll 1, 2 or 4 steps.
const PRODUCTS: usize = 14 * 2;

#[test]
fn accumulators_stay_in_registers() {
    // Links all kernels into this binary.
    let ctx = Context::new(Options { precision: Precision::Mixed, ..Options::default() }).unwrap();
    let spec = ConvSpec { c_in: 1, c_out: 1, kernel: 1, stride: 1, padding: 0 };
    let x = Activations::from_f32([1, 1, 1, 1], vec![1.0]).unwrap();
    assert_eq!(ops::conv_forward(&ctx, &spec, &x, &[2.0]).unwrap().to_f32(), [2.0]);
    let binary = std::env::current_exe().unwrap();
    let output = match Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(binary).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("no objdump here: nothing is checked");
            return;
        }
        Err(error) => panic!("objdump: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    for product in ["vfmadd", "vdpbf16ps"] {
        let count = |f: &str, what: &str| f.lines().filter(|l| l.contains(what) && l.contains("zmm")).count();
        let tiles: Vec<&str> = (text.split("\n\n"))
            .filter(|f| {
                let (products, broadcasts) = (count(f, product), count(f, "vbroadcastss"));
                // Transforms have many products too, but not one broadcast for each two of them.
                [PRODUCTS, 2 * PRODUCTS, 4 * PRODUCTS].contains(&products) && broadcasts == products / 2
            })
            .collect();
        assert!(!tiles.is_empty(), "no function has {PRODUCTS} {product} a step: has the tile changed?");
        for tile in tiles {
            // Where it is no frame pointer, `rbp` may point to anything.
            let has_frame = tile.lines().any(|l| l.split_whitespace().last() == Some("%rsp,%rbp"));
            let on_stack = |l: &str| l.contains("(%rsp") || has_frame && l.contains("(%rbp");
            let spill = tile.lines().find(|l| l.contains("zmm") && on_stack(l));
            assert!(spill.is_none(), "an accumulator is spilled: {}", spill.unwrap_or_default());
        }
    }
}
