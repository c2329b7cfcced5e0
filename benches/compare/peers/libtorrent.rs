//! libtorrent through its Python module, with its own preset for fast seeding.

use std::path::PathBuf;
use std::process::Command;

use super::{Peer, Recipe, Scene};
use crate::process::first_line;

/// Names a virtual environment that has the module.
const VENV_VARIABLE: &str = "SEEDRING_VENV";

/// Where the virtual environment is otherwise.
const VENV_DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/interop-venv");

/// What drives it.
const SCRIPT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/peers/drive_libtorrent.py");

/// `pip install libtorrent`.
pub(super) struct Libtorrent;

impl Peer for Libtorrent {
    fn name(&self) -> &'static str {
        "libtorrent"
    }

    fn version(&self) -> Option<String> {
        let said = first_line(python(), &["-c", "import libtorrent; print(libtorrent.version)"])?;
        said.starts_with(|first: char| first.is_ascii_digit()).then(|| format!("libtorrent {said}"))
    }

    fn seed(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = script("seed", scene);
        command.arg(&scene.ground.data_dir);
        Ok(Some(command))
    }

    fn fetch(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = script("fetch", scene);
        command.arg(scene.target()?).args(scene.sources.iter().map(ToString::to_string));
        Ok(Some(command))
    }

    fn check(&self, scene: &Scene<'_>) -> Recipe {
        let mut command = script("check", scene);
        command.arg(&scene.ground.data_dir);
        Ok(Some(command))
    }
}

fn python() -> PathBuf {
    let venv = std::env::var_os(VENV_VARIABLE).map_or_else(|| VENV_DEFAULT.into(), PathBuf::from);
    let python = venv.join("bin/python");
    if python.exists() { python } else { "python3".into() }
}

fn script(task: &str, scene: &Scene<'_>) -> Command {
    let mut command = Command::new(python());
    command.args([SCRIPT, task, &scene.listen.to_string()]).arg(&scene.ground.torrent);
    command
}
