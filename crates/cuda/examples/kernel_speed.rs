//! How fast the kernels are on card 0: microseconds and GB/s at the sizes of a ResNet-50 step of 64 images.
//!
//!     cargo run --release -p swav-cuda --example kernel_speed

use std::sync::Arc;

use swav_cuda::driver::{Card, DeviceMemory, Event, Module, Stream};
use swav_cuda::kernels::{
    self, ApplyGate, Branch, Fill, Launch, NormApply, NormBackwardApply, NormBackwardSums, NormGrad,
    NormPool, NormPoolBackwardApply, NormPoolBackwardSums, NormStatistics, PixelRows, PixelSource, PoolShape,
    Shortcut, SumsGate, norm_scratch_len,
};
use swav_cuda::shape::Element;
use swav_cuda::{Result, nvrtc};

/// A card with the kernels on it.
struct Machine {
    card: Arc<Card>,
    module: Module,
    stream: Stream,
}

impl Machine {
    fn open() -> Result<Self> {
        let card = Card::open(0)?;
        let compiled = nvrtc::compile(&kernels::source(), &card.properties().arch(), kernels::OPTIONS)?;
        let module = Module::new(&card, &compiled.cubin, kernels::NAMES.iter().copied())?;
        let stream = Stream::new(&card)?;
        Ok(Self { card, module, stream })
    }

    fn run(&self, launches: &[Launch<u64>]) -> Result<()> {
        for launch in launches {
            // SAFETY: the descriptions give the kernels' own arguments, and all buffers live until the program ends.
            unsafe { self.module.launch(launch, &self.stream) }?;
        }
        Ok(())
    }

    /// Memory of `len` values of 0.5.
    fn buffer(&self, element: Element, len: usize) -> Result<DeviceMemory> {
        let memory = DeviceMemory::new(&self.card, (element.bytes() * len) as u64)?;
        self.run(
            &Fill { element, to: memory.address(), value: 0.5, len: len.next_multiple_of(8) }.launches(),
        )?;
        Ok(memory)
    }

    /// Prints the median time of 16 runs over `sets` sets of buffers, and the rate of `bytes` each.
    fn time(
        &self,
        what: &str,
        bytes: f64,
        sets: usize,
        op: impl Fn(usize) -> Vec<Launch<u64>>,
    ) -> Result<()> {
        self.run(&op(0))?;
        let mut times = Vec::new();
        let events: Vec<_> = (0..16)
            .map(|_| Ok((Event::timed(&self.card)?, Event::timed(&self.card)?)))
            .collect::<Result<_>>()?;
        for (i, (start, end)) in events.iter().enumerate() {
            start.record(&self.stream)?;
            self.run(&op(i % sets))?;
            end.record(&self.stream)?;
        }
        for (start, end) in &events {
            end.synchronise()?;
            times.push(start.milliseconds_to(end)?);
        }
        times.sort_by(f32::total_cmp);
        let us = f64::from(times[8]) * 1e3;
        println!("  {what:<24} {us:8.1} us {:8.0} GB/s", bytes / us / 1e3);
        Ok(())
    }
}

/// Buffers of one tensor's size.
struct Set {
    a: DeviceMemory,
    b: DeviceMemory,
    c: DeviceMemory,
    d: DeviceMemory,
    e: DeviceMemory,
    mask: DeviceMemory,
}

/// A tensor of one size, several times over, so that no run finds it in a cache.
struct Norm<'a> {
    machine: &'a Machine,
    element: Element,
    rows: usize,
    channels: usize,
    sets: Vec<Set>,
    small: DeviceMemory,
    scratch: DeviceMemory,
}

impl<'a> Norm<'a> {
    fn new(machine: &'a Machine, element: Element, rows: usize, channels: usize) -> Result<Self> {
        let n = rows * channels;
        let size = (n * element.bytes()) as f64;
        println!("{rows} x {channels}, {element:?}, {:.0} MB", size / 1e6);
        let set = |_| {
            let buffer = || machine.buffer(element, n);
            let mask = machine.buffer(Element::Bf16, n / 16 + 8)?;
            Ok(Set { a: buffer()?, b: buffer()?, c: buffer()?, d: buffer()?, e: buffer()?, mask })
        };
        let sets = (0..((600e6 / size) as usize).clamp(1, 6)).map(set).collect::<Result<_>>()?;
        let small = machine.buffer(Element::F32, 64 * channels)?;
        let len = norm_scratch_len(rows, channels, 3);
        let scratch = machine.buffer(Element::F32, len)?;
        let clear =
            Fill { element: Element::F32, to: scratch.address(), value: 0.0, len: len.next_multiple_of(8) };
        machine.run(&clear.launches())?;
        Ok(Self { machine, element, rows, channels, sets, small, scratch })
    }

    /// Row `i` of the small values by channel.
    fn part(&self, i: usize) -> u64 {
        self.small.address() + (4 * i * self.channels) as u64
    }

    fn grad(&self, i: usize) -> NormGrad<u64> {
        NormGrad {
            gamma: self.part(i),
            state: self.part(i + 1),
            coefficients: self.part(i + 5),
            dgamma: self.part(i + 8),
            dbeta: self.part(i + 9),
        }
    }

    /// Times an operation that moves `passes` tensors, and masks if `mask`.
    fn time(&self, what: &str, passes: f64, mask: bool, op: impl Fn(&Set) -> Vec<Launch<u64>>) -> Result<()> {
        let n = (self.rows * self.channels) as f64;
        let bytes = passes * n * self.element.bytes() as f64 + if mask { n / 8.0 } else { 0.0 };
        self.machine.time(what, bytes, self.sets.len(), |i| op(&self.sets[i]))
    }

    fn forward(&self) -> Result<()> {
        let (element, rows, channels) = (self.element, self.rows, self.channels);
        let statistics = |s: &Set| NormStatistics {
            element,
            y: s.a.address(),
            rows,
            channels,
            gamma: self.part(0),
            beta: self.part(1),
            state: self.part(20),
            moments: self.part(24),
            epsilon: 1e-5,
            scratch: self.scratch.address(),
            reversed: false,
        };
        self.time("statistics", 1.0, false, |s| statistics(s).launches())?;
        let apply = |s: &Set, shortcut| NormApply {
            element,
            y: s.a.address(),
            state: self.part(1),
            shortcut,
            out: s.d.address(),
            mask: Some(s.mask.address()),
            rows,
            channels,
            reversed: true,
        };
        self.time("apply", 2.0, false, |s| apply(s, Shortcut::None).launches())?;
        self.time("apply, identity", 3.0, true, |s| apply(s, Shortcut::Identity(s.b.address())).launches())?;
        self.time("apply, normed", 3.0, true, |s| {
            apply(s, Shortcut::Normed { y: s.b.address(), state: self.part(2) }).launches()
        })
    }

    fn backward(&self) -> Result<()> {
        let (element, rows, channels) = (self.element, self.rows, self.channels);
        let sums = |s: &Set, gate| NormBackwardSums {
            element,
            dout: s.b.address(),
            y: s.a.address(),
            norm: self.grad(0),
            gate,
            rows,
            channels,
            scratch: self.scratch.address(),
            reversed: false,
        };
        self.time("backward sums", 2.0, false, |s| sums(s, SumsGate::Sign).launches())?;
        self.time("backward sums, mask", 2.0, true, |s| {
            sums(s, SumsGate::Mask(s.mask.address())).launches()
        })?;
        self.time("backward sums, pair", 3.0, true, |s| {
            let branch = Branch { y: s.c.address(), norm: self.grad(20) };
            sums(s, SumsGate::Pair { mask: s.mask.address(), branch }).launches()
        })?;
        let apply = |s: &Set, gate, out: u64| NormBackwardApply {
            element,
            dout: s.b.address(),
            y: s.a.address(),
            coefficients: self.part(5),
            gate,
            out,
            rows,
            channels,
            reversed: true,
        };
        self.time("backward apply", 3.0, false, |s| {
            apply(s, ApplyGate::Sign { state: self.part(1) }, s.b.address()).launches()
        })?;
        self.time("backward apply, mask", 4.0, true, |s| {
            apply(s, ApplyGate::Mask(s.mask.address()), s.d.address()).launches()
        })?;
        self.time("backward apply, pair", 5.0, true, |s| {
            let (mask, y, out) = (s.mask.address(), s.c.address(), s.e.address());
            apply(s, ApplyGate::Pair { mask, y, coefficients: self.part(30), out }, s.d.address()).launches()
        })
    }
}

fn stem(machine: &Machine, element: Element) -> Result<()> {
    let shape = PoolShape { images: 128, height: 112, width: 112, channels: 64 };
    let n = shape.rows() * 64;
    let size = (n * element.bytes()) as f64;
    println!("stem, 128 images of 224 x 224, {element:?}");
    let (y, dy) = (machine.buffer(element, n)?, machine.buffer(element, n)?);
    let (out, small) = (machine.buffer(element, shape.out_len())?, machine.buffer(Element::F32, 64 * 32)?);
    let positions = machine.buffer(Element::F32, shape.out_len() / 8)?;
    let len = norm_scratch_len(shape.rows(), 64, 2);
    let scratch = machine.buffer(Element::F32, len)?;
    let clear =
        Fill { element: Element::F32, to: scratch.address(), value: 0.0, len: len.next_multiple_of(8) };
    machine.run(&clear.launches())?;
    let part = |i: usize| small.address() + (4 * i * 64) as u64;
    let norm =
        NormGrad { gamma: part(0), state: part(1), coefficients: part(5), dgamma: part(8), dbeta: part(9) };
    let pool = NormPool {
        element,
        y: y.address(),
        state: part(1),
        shape,
        out: out.address(),
        positions: Some(positions.address()),
    };
    machine.time("pool", size * 1.31, 1, |_| pool.launches())?;
    let (dout, places, y_at) = (out.address(), positions.address(), y.address());
    let sums = NormPoolBackwardSums {
        element,
        dout,
        positions: places,
        y: y_at,
        norm,
        shape,
        scratch: scratch.address(),
    };
    machine.time("pool, backward sums", size * 1.31, 1, |_| sums.launches())?;
    let apply = NormPoolBackwardApply {
        element,
        dout,
        positions: places,
        y: y_at,
        state: part(1),
        coefficients: part(5),
        shape,
        out: dy.address(),
    };
    machine.time("pool, backward apply", size * 2.31, 1, |_| apply.launches())?;
    let bytes = machine.buffer(Element::F32, 128 * 224 * 224 * 3)?;
    for (what, source, width) in [
        ("pixels f32 to rows", PixelSource::F32, 4.0),
        ("pixels u8 to rows", PixelSource::normalised([0.5; 3], [0.25; 3]), 1.0),
    ] {
        let images = bytes.address();
        let op = PixelRows { element, images, source, n_images: 128, height: 224, width: 224, out: y_at };
        let moved = (op.out_len() * element.bytes()) as f64 + width * 128.0 * 224.0 * 224.0 * 3.0;
        machine.time(what, moved, 1, |_| op.launches())?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let machine = Machine::open()?;
    println!("{}", machine.card.properties());
    for element in [Element::Bf16, Element::F32] {
        let shapes = [
            (128 * 56 * 56, 256),
            (128 * 56 * 56, 64),
            (128 * 14 * 14, 1024),
            (384 * 12 * 12, 512),
            (128 * 7 * 7, 2048),
        ];
        for (rows, channels) in shapes {
            let norm = Norm::new(&machine, element, rows, channels)?;
            norm.forward()?;
            norm.backward()?;
        }
        stem(&machine, element)?;
    }
    Ok(())
}
