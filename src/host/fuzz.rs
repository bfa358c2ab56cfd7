//! Entry points for the fuzz targets in `fuzz/`, which see only public items: hostile bytes to the parsers of this
//! layer. Built with `--cfg fuzzing`, and for tests that use every entry point. A panic, a standstill or a failed
//! assertion here is a finding.

use super::security::{CapSet, seccomp};
use super::{blockio, cdi, monitor, mountinfo, network, users};
use std::path::Path;

/// Results of CNI plugins, configuration lists and cache entries, by the first byte.
pub fn cni(data: &[u8]) {
    network::fuzz::any(data);
}

/// A CDI specification: JSON, or by the first byte YAML.
pub fn cdi(data: &[u8]) {
    cdi::fuzz(data);
}

/// A monitor's bytes on its connection; the first byte gives the number of descriptors.
pub fn monitor(data: &[u8]) {
    monitor::fuzz::connection(data);
}

/// A user as an image names it, `/etc/passwd` and `/etc/group`, with NULs between.
pub fn users(data: &[u8]) {
    users::fuzz(data);
}

/// Files of the host and its kernel, by the first byte: a seccomp profile, classes of block I/O, `mountinfo`. `dir` is an
/// existing directory for the file.
///
/// # Panics
/// If the file cannot be written, or more mounts are found than there are lines.
pub fn files(dir: &Path, data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    let file = dir.join("file");
    if door % 3 < 2 {
        std::fs::write(&file, data).expect("write the file");
    }
    match door % 3 {
        0 => profile(&file),
        1 => drop(blockio::class(&file, "x")),
        _ => {
            let text = String::from_utf8_lossy(data);
            let mounts = mountinfo::parse(&text);
            assert!(mounts.len() <= text.lines().count());
            let _ = mountinfo::holding(&mounts, Path::new("/a b/c"));
        }
    }
}

/// A profile of the node. What is taken gives a container without capabilities no call without a rule of the file.
fn profile(file: &Path) {
    let machine = seccomp::Machine { arch: "x86_64", kernel: (6, 1) };
    let Ok(profile) = seccomp::load(file, machine) else { return };
    let _ = (profile.for_container(CapSet::EMPTY), profile.for_container(CapSet::ALL));
}

/// Sends each seed of a target, and what is near it, through its door.
#[cfg(test)]
pub(crate) mod seeds {
    use std::path::Path;

    /// Rounds through each seed; `make fuzz` does millions.
    const ROUNDS: u64 = 100;

    /// If `choices` is more than one, a seed's first byte chooses among as many entry points, and each must have a
    /// seed.
    pub(crate) fn through(target: &str, choices: u8, mut door: impl FnMut(&[u8])) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let seeds: Vec<_> =
            std::fs::read_dir(dir).unwrap().flatten().map(|e| std::fs::read(e.path()).unwrap()).collect();
        assert!(
            (0..choices).all(|door| seeds.iter().any(|seed| choices == 1 || seed[0] == door)),
            "{target}: a door without a seed"
        );
        // xorshift64: the same bytes in every run.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
        };
        let keep = usize::from(choices > 1);
        for seed in seeds.iter().filter(|seed| seed.len() > 1) {
            door(seed);
            for round in 0..ROUNDS {
                let mut data = seed.clone();
                for _ in 0..=round % 4 {
                    let at = keep + random(data.len() - keep);
                    match random(3) {
                        0 => data[at] = u8::try_from(random(256)).unwrap(),
                        1 if at > keep => data.truncate(at),
                        _ => data.extend_from_within(at..),
                    }
                }
                door(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::seeds::through;
    use super::*;

    #[test]
    fn seeds_and_what_is_near_them_go_through_every_door() {
        through("cni", 4, cni);
        through("cdi", 2, cdi);
        through("users", 1, users);
        through("monitor", 1, monitor);
        let dir = tempfile::tempdir().unwrap();
        through("files", 3, |data| files(dir.path(), data));
    }
}
