//! The places where libraries are looked for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The environment variable that names folders.
pub(crate) const VARIABLE: &str = "SWAV_CUDA_LIBS";

/// Why a place is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// `SWAV_CUDA_LIBS` names it.
    Variable,
    /// The system's loader looks there.
    Loader,
    /// CUDA or the driver usually lies there.
    System,
    /// A Python environment has NVIDIA's packages there.
    Python,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Variable => "by SWAV_CUDA_LIBS",
            Origin::Loader => "by the system's loader",
            Origin::System => "in a usual folder",
            Origin::Python => "in a Python environment",
        })
    }
}

/// A place to look in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Wherever the system's loader looks.
    Loader,
    /// A folder.
    Folder(Origin, PathBuf),
}

impl Place {
    /// Why it is searched.
    pub fn origin(&self) -> Origin {
        match self {
            Place::Loader => Origin::Loader,
            Place::Folder(origin, _) => *origin,
        }
    }

    pub(super) fn is_loader(&self) -> bool {
        *self == Place::Loader
    }

    /// What to open for the file `name`: nothing if it is certainly not there.
    pub(super) fn candidate(&self, name: &str) -> Option<PathBuf> {
        match self {
            Place::Loader => Some(name.into()),
            Place::Folder(_, folder) => Some(folder.join(name)).filter(|path| path.exists()),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Loader => f.write_str("the loader's own path (LD_LIBRARY_PATH, ld.so.cache)"),
            Place::Folder(origin, folder) => write!(f, "{} ({origin})", folder.display()),
        }
    }
}

/// A step of the search that lists folders, run when all before it found nothing.
type Stage = Box<dyn Fn() -> Vec<Place>>;

/// The places of a search, in order.
pub struct Places(Vec<Stage>);

impl Places {
    /// The places for this process: the order is told at the head of [`crate::libs`].
    pub fn of_this_process() -> Self {
        let variable = || {
            let value = std::env::var_os(VARIABLE).unwrap_or_default();
            let folders = std::env::split_paths(&value).filter(|folder| !folder.as_os_str().is_empty());
            folders.flat_map(|folder| around(Origin::Variable, &folder)).collect()
        };
        Places(vec![
            Box::new(variable),
            Box::new(|| vec![Place::Loader]),
            Box::new(system),
            Box::new(|| {
                environments(["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os))
            }),
            Box::new(|| imports("python3")),
        ])
    }

    /// These folders as if `SWAV_CUDA_LIBS` named them, and nothing else.
    pub fn folders(folders: &[PathBuf]) -> Self {
        let folders: Vec<Place> =
            folders.iter().flat_map(|folder| around(Origin::Variable, folder)).collect();
        Places(vec![Box::new(move || folders.clone())])
    }

    /// The places one by one; a step's folders are listed when the one before is exhausted.
    pub fn iter(&self) -> impl Iterator<Item = Place> {
        self.0.iter().flat_map(|stage| stage())
    }

    /// All places.
    pub fn all(&self) -> Vec<Place> {
        self.iter().collect()
    }
}

/// A folder and the folders of libraries below it.
fn around(origin: Origin, folder: &Path) -> Vec<Place> {
    let mut folders = vec![folder.to_owned(), folder.join("lib")];
    folders.extend(each_lib(folder));
    folders.extend(each_lib(&folder.join("nvidia")));
    folders.retain(|path| path.is_dir() || path == folder);
    folders.into_iter().map(|path| Place::Folder(origin, path)).collect()
}

/// `folder/*/lib`, sorted. The highest version of CUDA comes first.
fn each_lib(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path().join("lib")).filter(|path| path.is_dir()).collect();
    folders.sort_unstable_by(|a, b| b.cmp(a));
    folders
}

/// CUDA's and the driver's usual folders.
fn system() -> Vec<Place> {
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = roots.flat_map(|root| [root.join("lib64"), root.join("lib")]).collect();
    folders.push("/usr/local/cuda/lib64".into());
    folders.push("/opt/cuda/lib64".into());
    if let Ok(entries) = std::fs::read_dir("/usr/local") {
        let named =
            |entry: std::fs::DirEntry| entry.file_name().to_str()?.starts_with("cuda-").then(|| entry.path());
        let mut versions: Vec<PathBuf> = entries.flatten().filter_map(named).collect();
        versions.sort_unstable_by(|a, b| b.cmp(a));
        folders.extend(versions.into_iter().map(|root| root.join("lib64")));
    }
    let others =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib"];
    folders.extend(others.iter().map(PathBuf::from));
    folders.push("/run/opengl-driver/lib".into());
    folders.retain(|folder| folder.is_dir());
    folders.into_iter().map(|folder| Place::Folder(Origin::System, folder)).collect()
}

/// NVIDIA's packages in Python environments, given by their roots.
fn environments(roots: impl Iterator<Item = std::ffi::OsString>) -> Vec<Place> {
    let mut places = Vec::new();
    for root in roots.map(PathBuf::from).filter(|root| !root.as_os_str().is_empty()) {
        if let Ok(entries) = std::fs::read_dir(root.join("lib")) {
            let mut pythons: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            pythons.retain(|path| path.join("site-packages").is_dir());
            pythons.sort_unstable();
            for python in pythons {
                let folders = each_lib(&python.join("site-packages/nvidia"));
                places.extend(folders.into_iter().map(|folder| Place::Folder(Origin::Python, folder)));
            }
        }
        // Conda's own packages lie here.
        let own = root.join("lib");
        if own.is_dir() {
            places.push(Place::Folder(Origin::Python, own));
        }
    }
    places
}

/// NVIDIA's packages in the folders that a Python program imports from. Runs it, once a search.
fn imports(python: &str) -> Vec<Place> {
    let script = r#"import sys; print("\n".join(sys.path))"#;
    let mut command = Command::new(python);
    command.args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null());
    let Ok(output) = command.output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let folders = text
        .lines()
        .filter(|line| !line.is_empty())
        .flat_map(|line| each_lib(&Path::new(line).join("nvidia")));
    folders.map(|folder| Place::Folder(Origin::Python, folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(places: &[Place]) -> Vec<&Path> {
        let folders = places.iter().filter_map(|place| match place {
            Place::Folder(_, folder) => Some(folder.as_path()),
            Place::Loader => None,
        });
        folders.collect()
    }

    #[test]
    fn packages_of_an_environment_are_found() {
        let root = tempfile::tempdir().expect("a folder");
        let site = root.path().join("lib/python3.12/site-packages/nvidia");
        for name in ["cu13", "cudnn"] {
            std::fs::create_dir_all(site.join(name).join("lib")).expect("folders");
        }
        std::fs::create_dir_all(site.join("empty")).expect("folders");
        let places = environments([root.path().as_os_str().to_owned()].into_iter());
        let expected = [site.join("cudnn/lib"), site.join("cu13/lib"), root.path().join("lib")];
        assert_eq!(folders(&places), expected.iter().map(PathBuf::as_path).collect::<Vec<_>>());
        assert!(places.iter().all(|place| place.origin() == Origin::Python));
    }

    #[test]
    fn the_variable_may_name_a_folder_of_packages() {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join("nvidia/cudnn/lib")).expect("folders");
        std::fs::create_dir_all(root.path().join("lib")).expect("folders");
        let places = Places::folders(&[root.path().to_owned()]).all();
        let expected =
            [root.path().to_owned(), root.path().join("lib"), root.path().join("nvidia/cudnn/lib")];
        assert_eq!(folders(&places), expected.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    }

    #[test]
    fn a_program_that_is_not_there_has_no_packages() {
        assert!(imports("no-such-python").is_empty());
    }

    #[test]
    fn a_file_is_a_candidate_only_where_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("liba.so"), b"").expect("a file");
        let place = Place::Folder(Origin::System, folder.path().to_owned());
        assert_eq!(place.candidate("liba.so"), Some(folder.path().join("liba.so")));
        assert_eq!(place.candidate("libb.so"), None);
        assert_eq!(Place::Loader.candidate("libb.so"), Some("libb.so".into()));
    }
}
