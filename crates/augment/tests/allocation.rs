//! A scratch that has seen the sizes at hand does not allocate any more. A file of its own, because a process has one
//! allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use swav_augment::{Channels, CropKey, Image, MultiCropConfig, Scratch};

thread_local! {
    /// Allocations of this thread: those of the test's harness do not count.
    static N_ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counted.
struct Counting;

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        N_ALLOCATIONS.set(N_ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        N_ALLOCATIONS.set(N_ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps the contract of `realloc`, and `pointer` came from `System`.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_is_allocated_once_warm() {
    let config: MultiCropConfig = toml::from_str(
        "rotation.probability = 0.5\nperspective.probability = 0.5\nelastic.probability = 0.5\n\
         solarize.probability = 0.5\nequalize.probability = 0.5",
    )
    .unwrap();
    let recipe = config.check().unwrap();
    let image = Image::new(320, 240, Channels::Rgb, vec![90; 320 * 240 * 3]).unwrap();
    let (mut out, mut bytes) = (vec![0.0; 224 * 224 * 3], vec![0; 224 * 224 * 3]);
    let mut scratch = Scratch::default();
    let mut pass = || {
        for sample in 0..8 {
            for crop in 0..recipe.n_crops() {
                let (group, _) = recipe.locate(crop).unwrap();
                let len = recipe.groups()[group].crop.size.pow(2) * 3;
                let key = CropKey { seed: 31, epoch: 0, sample, crop: crop as u64 };
                recipe.fill(image.view(), key, &mut out[..len], &mut scratch).unwrap();
                recipe.fill_bytes(image.view(), key, &mut bytes[..len], &mut scratch).unwrap();
            }
        }
    };
    pass();
    let before = N_ALLOCATIONS.get();
    pass();
    assert_eq!(N_ALLOCATIONS.get(), before);
}
