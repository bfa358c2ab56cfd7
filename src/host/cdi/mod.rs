//! Devices by the Container Device Interface: what a name such as `vendor.com/gpu=0` means on this node.
//!
//! Owns the directories of specifications and their order. Read for each container that asks, so that a driver's new
//! file counts at once. Never edits a container's specification: that is `sandbox::spec`.

mod file;

pub use file::{DeviceNode, Edits, Hook, HookPoint, Mount};

use file::Specification;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Bytes of a specification at most. Generated ones of large machines have some 200 KiB.
const MAX_BYTES: u64 = 4 << 20;
/// Files of one directory at most.
const MAX_FILES: usize = 1024;

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// No specification has it.
    #[error("CDI device {device:?} is in no specification in {}{}", list(dirs), broken(problems))]
    Unknown {
        /// The name.
        device: String,
        /// Where was looked.
        dirs: Vec<PathBuf>,
        /// Files that could not be used: it may be in one of them.
        problems: Vec<String>,
    },
    /// Two files of one directory have it.
    #[error("CDI device {device:?} is in both {} and {}: remove one", first.display(), second.display())]
    Conflict {
        /// The name.
        device: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// It wants something that podwright cannot give.
    #[error("CDI device {device:?} of {} has {what}, which this version does not support", file.display())]
    Unsupported {
        /// The name.
        device: String,
        /// The file.
        file: PathBuf,
        /// The field.
        what: &'static str,
    },
}

fn list(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(", ")
}

fn broken(problems: &[String]) -> String {
    if problems.is_empty() { String::new() } else { format!("; not usable: {}", problems.join("; ")) }
}

/// Whether `name` has the form `vendor/class=device`.
#[must_use]
pub fn is_qualified(name: &str) -> bool {
    let Some((kind, device)) = name.split_once('=') else { return false };
    let Some((vendor, class)) = kind.split_once('/') else { return false };
    file::is_vendor(vendor) && file::is_class(class) && file::is_device(device)
}

struct Found {
    file: PathBuf,
    /// Index of the directory: a later one wins.
    priority: usize,
    specification: Specification,
}

/// What the devices change, together, in the order that the specification says: the edits of a file once, before
/// those of its first device. Blocking.
///
/// # Errors
/// When a device is not there, is there twice, or wants something unsupported.
pub fn resolve(dirs: &[PathBuf], devices: &[String]) -> Result<Edits, CdiError> {
    let (mut all, mut applied) = (Edits::default(), Vec::new());
    if devices.is_empty() {
        return Ok(all);
    }
    let (found, problems) = read_all(dirs);
    let mut index: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
    for (number, found) in found.iter().enumerate() {
        for (position, device) in found.specification.devices.iter().enumerate() {
            let name = format!("{}={}", found.specification.kind, device.name);
            index.entry(name).or_default().push((number, position));
        }
    }
    for device in devices {
        let candidates = index.get(device).map(Vec::as_slice).unwrap_or_default();
        let highest = candidates.iter().map(|(number, _)| found[*number].priority).max();
        let mut best = candidates.iter().filter(|(number, _)| Some(found[*number].priority) == highest);
        let (number, position) = match (best.next(), best.next()) {
            (None, _) => {
                let (device, dirs) = (device.clone(), dirs.to_vec());
                return Err(CdiError::Unknown { device, dirs, problems });
            }
            (Some((first, _)), Some((second, _))) => {
                let (first, second) = (found[*first].file.clone(), found[*second].file.clone());
                return Err(CdiError::Conflict { device: device.clone(), first, second });
            }
            (Some(one), None) => *one,
        };
        let chosen = &found[number];
        if !applied.contains(&number) {
            applied.push(number);
            add(&mut all, device, &chosen.file, &chosen.specification.container_edits)?;
        }
        add(&mut all, device, &chosen.file, &chosen.specification.devices[position].container_edits)?;
    }
    Ok(all)
}

fn add(all: &mut Edits, device: &str, file: &Path, more: &Edits) -> Result<(), CdiError> {
    let unsupported = |what| CdiError::Unsupported { device: device.to_owned(), file: file.to_owned(), what };
    if !more.net_devices.is_empty() {
        return Err(unsupported("netDevices"));
    }
    if more.intel_rdt.is_some() {
        return Err(unsupported("intelRdt"));
    }
    all.env.extend(more.env.iter().cloned());
    all.device_nodes.extend(more.device_nodes.iter().cloned());
    all.mounts.extend(more.mounts.iter().cloned());
    all.hooks.extend(more.hooks.iter().cloned());
    all.additional_gids.extend(&more.additional_gids);
    Ok(())
}

/// All specifications that can be used, and what is wrong with the others: one broken file must not take the devices
/// of another vendor away.
fn read_all(dirs: &[PathBuf]) -> (Vec<Found>, Vec<String>) {
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (priority, dir) in dirs.iter().enumerate() {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            // A node without devices has no such directory.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                problems.push(format!("{}: {error}", dir.display()));
                continue;
            }
        };
        let known =
            |path: &PathBuf| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
        files.sort();
        files.truncate(MAX_FILES);
        for file in files {
            match read(&file).and_then(|text| file::parse(&file, &text)) {
                Ok(specification) => found.push(Found { file, priority, specification }),
                Err(problem) => problems.push(format!("{}: {problem}", file.display())),
            }
        }
    }
    (found, problems)
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return Err("it is no regular file".to_owned());
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    Ok(text)
}

/// The door of the fuzz target `cdi`: JSON or YAML by the first byte. What is taken has devices with names of their own.
#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(data: &[u8]) {
    let Some((door, data)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = Path::new(if door.is_multiple_of(2) { "a.json" } else { "a.yaml" });
    let Ok(specification) = file::parse(path, text) else { return };
    let names: std::collections::BTreeSet<_> = specification
        .devices
        .iter()
        .map(|device| format!("{}={}", specification.kind, device.name))
        .collect();
    assert!(!names.is_empty() && names.len() == specification.devices.len());
    assert!(names.iter().all(|name| is_qualified(name)));
    let mut all = Edits::default();
    for device in &specification.devices {
        let _ = add(&mut all, &device.name, path, &device.container_edits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = r#"
cdiVersion: "0.6.0"
kind: "vendor.com/gpu"
annotations: { "by": "test" }
containerEdits:
  env: ["ALL=yes"]
  hooks:
    - hookName: createContainer
      path: /usr/bin/hook
      args: ["hook", "--create"]
      timeout: 5
devices:
  - name: "0"
    containerEdits:
      deviceNodes: [{ path: /dev/gpu0, hostPath: /dev/null, permissions: rw }]
      env: ["GPU=0"]
      additionalGids: [44]
  - name: all
    containerEdits:
      mounts: [{ hostPath: /lib/gpu, containerPath: /usr/lib/gpu, options: [ro, rbind] }]
"#;

    fn dirs(files: &[(&str, &str)]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let dirs = ["etc", "run"].map(|dir| root.path().join(dir)).to_vec();
        (root, dirs)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn the_edits_of_a_file_come_once_and_before_its_devices() {
        let (_root, dirs) = dirs(&[("etc/gpu.yaml", GPU)]);
        let edits = resolve(&dirs, &names(&["vendor.com/gpu=0", "vendor.com/gpu=all"])).unwrap();
        assert_eq!(edits.env, ["ALL=yes", "GPU=0"]);
        assert_eq!(edits.hooks.len(), 1);
        assert_eq!((edits.hooks[0].hook_name, edits.hooks[0].timeout), (HookPoint::CreateContainer, Some(5)));
        assert_eq!(edits.mounts[0].container_path, Path::new("/usr/lib/gpu"));
        assert_eq!(edits.device_nodes[0].host_path.as_deref(), Some(Path::new("/dev/null")));
        assert_eq!(edits.additional_gids, [44]);
        assert_eq!(resolve(&dirs, &[]).unwrap(), Edits::default());
    }

    #[test]
    fn a_later_directory_wins_and_a_conflict_in_one_is_an_error() {
        let json = |value: &str| {
            format!(
                r#"{{"cdiVersion":"0.3.0","kind":"v.com/c","devices":[{{"name":"d","containerEdits":{{"env":["X={value}"]}}}}]}}"#
            )
        };
        let (_root, dirs) = dirs(&[("etc/a.json", &json("etc")), ("run/a.json", &json("run"))]);
        assert_eq!(resolve(&dirs, &names(&["v.com/c=d"])).unwrap().env, ["X=run"]);
        std::fs::write(dirs[1].join("b.json"), json("other")).unwrap();
        let error = resolve(&dirs, &names(&["v.com/c=d"])).unwrap_err();
        assert!(matches!(error, CdiError::Conflict { .. }), "{error}");
    }

    #[test]
    fn a_file_of_devices_costs_no_more_than_its_length() {
        let devices: Vec<String> = (0..200_000).map(|n| format!(r#"{{"name":"{n}"}}"#)).collect();
        let text = |more: &str| {
            format!(r#"{{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{}{more}]}}"#, devices.join(","))
        };
        let begun = std::time::Instant::now();
        let path = Path::new("a.json");
        assert_eq!(file::parse(path, &text("")).unwrap().devices.len(), 200_000);
        assert!(file::parse(path, &text(r#",{"name":"7"}"#)).unwrap_err().contains("twice"));
        // A second or two; comparing each with each took minutes.
        assert!(begun.elapsed().as_secs() < 60);
    }

    #[test]
    fn aliases_of_aliases_in_yaml_end() {
        let mut text =
            "cdiVersion: 0.6.0\nkind: v.com/c\nannotations:\n  a: &a [x, x, x, x, x, x, x, x, x]\n"
                .to_owned();
        for (name, of) in ('b'..='i').zip('a'..) {
            text.push_str(&format!("  {name}: &{name} [{}]\n", vec![format!("*{of}"); 9].join(", ")));
        }
        text.push_str("devices: *i\n");
        assert!(file::parse(Path::new("a.yaml"), &text).is_err());
        let deep = format!("cdiVersion: 0.6.0\nkind: {}x{}\n", "[".repeat(100_000), "]".repeat(100_000));
        assert!(file::parse(Path::new("a.yaml"), &deep).is_err());
        assert!(file::parse(Path::new("a.json"), &format!("{{\"kind\":{}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn what_is_not_there_is_an_error_that_names_broken_files() {
        let (_root, dirs) = dirs(&[("etc/gpu.yaml", GPU), ("run/bad.yaml", "kind: [\n")]);
        let error = resolve(&dirs, &names(&["vendor.com/gpu=7"])).unwrap_err().to_string();
        assert!(error.contains("vendor.com/gpu=7") && error.contains("bad.yaml"), "{error}");
        // A broken file of somebody else harms no device.
        resolve(&dirs, &names(&["vendor.com/gpu=0"])).unwrap();
        let none = resolve(&["/no/such/dir".into()], &names(&["a.b/c=d"])).unwrap_err();
        assert!(matches!(none, CdiError::Unknown { .. }));
    }

    #[test]
    fn what_cannot_be_given_is_an_error() {
        for field in
            [r#""netDevices":[{"hostInterfaceName":"eth1","name":"e"}]"#, r#""intelRdt":{"closID":"x"}"#]
        {
            let text = format!(
                r#"{{"cdiVersion":"1.1.0","kind":"v.com/c","devices":[{{"name":"d","containerEdits":{{{field}}}}}]}}"#
            );
            let (_root, dirs) = dirs(&[("etc/a.json", &text)]);
            let error = resolve(&dirs, &names(&["v.com/c=d"])).unwrap_err();
            assert!(matches!(error, CdiError::Unsupported { .. }), "{error}");
        }
    }

    #[test]
    fn a_wrong_specification_is_not_used() {
        let good = r#"{"cdiVersion":"0.6.0","kind":"v.com/c","devices":[{"name":"d","containerEdits":{}}]}"#;
        let path = Path::new("x.json");
        file::parse(path, good).unwrap();
        for (old, new) in [
            ("0.6.0", "2.0.0"),
            ("v.com/c", "v.com"),
            ("v.com/c", "/c"),
            ("\"d\"", "\"d/e\""),
            ("\"kind\"", "\"sort\""),
            ("[{\"name\":\"d\",\"containerEdits\":{}}]", "[]"),
            ("\"containerEdits\":{}", "\"containerEdits\":{\"env\":[\"=x\"]}"),
            ("\"containerEdits\":{}", "\"containerEdits\":{\"deviceNodes\":[{\"path\":\"dev\"}]}"),
            (
                "\"containerEdits\":{}",
                "\"containerEdits\":{\"hooks\":[{\"hookName\":\"never\",\"path\":\"/x\"}]}",
            ),
            (
                "\"containerEdits\":{}",
                "\"containerEdits\":{\"hooks\":[{\"hookName\":\"poststop\",\"path\":\"x\"}]}",
            ),
            ("\"containerEdits\":{}", "\"containerEdits\":{\"mounts\":[{\"hostPath\":\"/x\"}]}"),
            ("\"containerEdits\":{}", "\"containerEdits\":{\"additionalGids\":[44,4294967295]}"),
            (
                "\"containerEdits\":{}",
                "\"containerEdits\":{\"deviceNodes\":[{\"path\":\"/dev/x\",\"uid\":4294967295}]}",
            ),
            (
                "\"containerEdits\":{}",
                "\"containerEdits\":{\"deviceNodes\":[{\"path\":\"/dev/x\",\"gid\":4294967295}]}",
            ),
        ] {
            let text = good.replace(old, new);
            assert_ne!(text, good);
            assert!(file::parse(path, &text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_qualified() {
        for good in ["vendor.com/gpu=0", "a/b=c:1", "v-1/c_2=all"] {
            assert!(is_qualified(good), "{good}");
        }
        for bad in
            ["", "gpu", "vendor.com/gpu", "/gpu=0", "v/=0", "v/c=", "1v/c=0", "v/c=a b", "v/c=a\n", "v/c=a/b"]
        {
            assert!(!is_qualified(bad), "{bad}");
        }
    }
}
