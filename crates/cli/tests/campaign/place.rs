//! What the commands work on.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::{Rgb, RgbImage};
use tempfile::TempDir;

const TINY: &str = r#"
[training]
epochs = 1
batch_size = 8
threads = 1
[loader]
n_workers = 1
[augment]
crops = [{ size = 8, n_crops = 2, min_scale = 0.3, max_scale = 1.0 }]
[encoder]
arch = { custom = { block = "basic", layers = [1] } }
width = 4
stem = "cifar"
head = "linear"
dim = 4
[prototypes]
n_prototypes = [4]
[optimizer]
base_lr = 0.1
warmup_epochs = 0
[reestimation]
resize = 8
size = 8
"#;

/// What the cases read: photos and a trained run, and what only looks like them. Each case works in a folder of its own below.
pub struct Place(pub TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        let root = place.0.path();
        fs::write(root.join("tiny.toml"), TINY).unwrap();
        fs::write(root.join("file.txt"), "neither = images\n[nor").unwrap();
        fs::write(root.join("list.txt"), "photos/a/00.png\tx\nphotos/none.png\t\n../../etc/passwd\n")
            .unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        fs::create_dir(root.join("bad")).unwrap();
        fs::write(root.join("bad/a.png"), b"\x89PNG\r\n\x1a\nno more").unwrap();
        for (to, link) in [
            ("loop", "loop"),
            ("../photos", "links/photos"),
            ("..", "links/up"),
            (".", "links/here"),
            ("/proc", "links/proc"),
        ] {
            fs::create_dir_all(root.join("links")).unwrap();
            std::os::unix::fs::symlink(to, root.join(link)).unwrap();
        }
        for number in 0..16u8 {
            let folders = [["photos", "a"], ["photos", "b"], ["odd\nname", "c\td"]];
            for [data, class] in &folders[if number % 2 == 0 { 0..1 } else { 1..3 }] {
                let folder = root.join(data).join(class);
                fs::create_dir_all(&folder).unwrap();
                let image =
                    RgbImage::from_fn(12, 10, |x, y| Rgb([number * 16, (x * 20) as u8, (y * 20) as u8]));
                image.save(folder.join(format!("{number:02}.png"))).unwrap();
            }
        }
        pack(&root.join("photos"), root);
        let trained = Command::new(env!("CARGO_BIN_EXE_swav"))
            .args([
                "pretrain",
                "--config",
                "tiny.toml",
                "--data",
                "photos",
                "--run",
                "run",
                "--no-evaluation",
            ])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        place
    }

    /// A working directory with a run and files that are there already.
    pub fn work(&self) -> TempDir {
        let work = TempDir::new_in(self.0.path()).unwrap();
        copy(&self.0.path().join("run"), &work.path().join("run"));
        fs::create_dir(work.path().join("empty")).unwrap();
        for name in ["there.npy", "there.png"] {
            fs::write(work.path().join(name), "mine").unwrap();
        }
        work
    }
}

/// The photos in an archive of an archive for each class, and what begins as a zip archive.
fn pack(photos: &Path, root: &Path) {
    let mut outer = tar::Builder::new(Vec::new());
    for class in ["a", "b"] {
        let mut inner = tar::Builder::new(Vec::new());
        inner.append_dir_all(".", photos.join(class)).unwrap();
        let inner = inner.into_inner().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(inner.len() as u64);
        outer.append_data(&mut header, format!("{class}.tar"), &inner[..]).unwrap();
    }
    fs::write(root.join("nested.tar"), outer.into_inner().unwrap()).unwrap();
    fs::write(root.join("photos.zip"), b"PK\x03\x04 and no more").unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}
