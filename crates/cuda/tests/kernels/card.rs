//! The same tests on a card: with `SWAV_TEST_CARD=N` in the environment, buffers and launches are card N's.

use std::sync::{Arc, OnceLock};

use swav_cuda::driver::{Card, DeviceMemory, Module, Stream};
use swav_cuda::kernels::{self, Launch};
use swav_cuda::nvrtc;

/// A card with the kernels on it.
pub struct Machine {
    card: Arc<Card>,
    module: Module,
    stream: Stream,
}

/// The card that was asked for, if one was.
pub fn machine() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let number = std::env::var("SWAV_TEST_CARD").ok()?;
        let card =
            Card::open(number.parse().expect("SWAV_TEST_CARD is a number")).expect("a card that works");
        let arch = card.properties().arch();
        let compiled =
            nvrtc::compile(&kernels::source(), &arch, kernels::OPTIONS).expect("the kernels compile");
        let module =
            Module::new(&card, &compiled.cubin, kernels::NAMES.iter().copied()).expect("the kernels load");
        let stream = Stream::new(&card).expect("a stream");
        Some(Machine { card, module, stream })
    });
    machine.as_ref()
}

impl Machine {
    /// Memory filled with bytes of 0xff.
    pub fn memory(&self, bytes: usize) -> DeviceMemory {
        let memory = DeviceMemory::new(&self.card, bytes as u64).expect("memory of the card");
        memory.fill(0..bytes as u64, 0xff, &self.stream).expect("memory of the card can be filled");
        memory
    }

    pub fn upload(&self, memory: &DeviceMemory, bytes: &[u8]) {
        memory.upload(0, bytes, &self.stream).expect("an upload");
    }

    pub fn download(&self, memory: &DeviceMemory, bytes: usize) -> Vec<u8> {
        memory.download(0..bytes as u64, &self.stream).expect("a download")
    }

    /// Runs launches one after the other and waits for them.
    pub fn run(&self, launches: &[Launch<u64>]) {
        for launch in launches {
            // SAFETY: the arguments were compared with the kernels' parameters by the tests on the CPU, and pointers are
            // those of buffers that live until the launches are done, which is waited for below.
            unsafe { self.module.launch(launch, &self.stream) }.expect("a launch");
        }
        self.stream.synchronise().expect("the kernels run");
    }
}
