//! Block I/O classes: the file that defines them, in goresctrl's format as in containerd and CRI-O, and their meaning
//! for the block devices of this node.
//!
//! Owns the format and the matching of devices. Never writes a cgroup: the OCI runtime does.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBlockIo, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice,
    LinuxWeightDeviceBuilder,
};
use rustix::fs::FileType;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Weights as the kernel's BFQ takes them.
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Why a class cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum BlockIoError {
    /// No classes are defined.
    #[error(
        "block I/O class {class:?} is requested, but containers.blockio_config_file names no file with classes"
    )]
    NotConfigured {
        /// The class.
        class: String,
    },
    /// The file does not have it.
    #[error("block I/O class {class:?} is not in {}", file.display())]
    Unknown {
        /// The class.
        class: String,
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be used.
    #[error("block I/O classes of {}: {problem}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The fault.
        problem: String,
    },
    /// The kernel cannot.
    #[error(
        "block I/O class {class:?} is requested, but the cgroups of this host have no {controller} controller"
    )]
    NoController {
        /// The class.
        class: String,
        /// The controller.
        controller: &'static str,
    },
    /// The types of the OCI spec refused a value.
    #[error("block I/O class: {0}")]
    Oci(#[from] OciSpecError),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct Classes {
    #[serde(default)]
    classes: BTreeMap<String, Vec<Rule>>,
}

/// For the devices that it names, or without any, a weight for all.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "PascalCase")]
struct Rule {
    devices: Vec<String>,
    weight: Option<Amount>,
    throttle_read_bps: Option<Amount>,
    throttle_write_bps: Option<Amount>,
    #[serde(rename = "ThrottleReadIOPS")]
    throttle_read_iops: Option<Amount>,
    #[serde(rename = "ThrottleWriteIOPS")]
    throttle_write_iops: Option<Amount>,
}

/// A number, or one with a Kubernetes suffix: `60M`, `10k`, `1Gi`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

impl Amount {
    fn value(&self) -> Result<u64, String> {
        let text = match self {
            Self::Number(number) => return Ok(*number),
            Self::Text(text) => text.trim(),
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let factor: u64 = match suffix {
            "" => 1,
            "k" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(format!("{text:?} is no amount")),
        };
        let number: u64 = number.parse().map_err(|_| format!("{text:?} is no amount"))?;
        number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
    }
}

/// The meaning of `class` on this node. Blocking.
///
/// # Errors
/// If the file or the class does not exist, or one of its rules matches no device.
pub fn class(file: &Path, class: &str) -> Result<LinuxBlockIo, BlockIoError> {
    if file.as_os_str().is_empty() {
        return Err(BlockIoError::NotConfigured { class: class.to_owned() });
    }
    let wrong = |problem| BlockIoError::File { file: file.to_owned(), problem };
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
    let classes: Classes = serde_saphyr::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let rules = classes
        .classes
        .get(class)
        .ok_or_else(|| BlockIoError::Unknown { class: class.to_owned(), file: file.to_owned() })?;
    let mut all = LinuxBlockIo::default();
    let (mut weights, mut limits): (Vec<LinuxWeightDevice>, [Vec<LinuxThrottleDevice>; 4]) =
        Default::default();
    for rule in rules {
        let weight = rule.weight.as_ref().map(weight).transpose().map_err(wrong)?;
        let amounts = [
            &rule.throttle_read_bps,
            &rule.throttle_write_bps,
            &rule.throttle_read_iops,
            &rule.throttle_write_iops,
        ]
        .map(|amount| amount.as_ref().map(Amount::value).transpose());
        if rule.devices.is_empty() {
            if rule.throttle_read_bps.is_some()
                || rule.throttle_write_bps.is_some()
                || rule.throttle_read_iops.is_some()
                || rule.throttle_write_iops.is_some()
            {
                return Err(wrong(format!("class {class:?} has a limit that names no devices")));
            }
            if weight.is_some() {
                all.set_weight(weight);
            }
            continue;
        }
        let devices = block_devices(&rule.devices).map_err(wrong)?;
        for (major, minor) in devices {
            if let Some(weight) = weight {
                weights.push(
                    LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(weight).build()?,
                );
            }
            for (limits, amount) in limits.iter_mut().zip(&amounts) {
                if let Some(rate) = amount.clone().map_err(wrong)? {
                    limits.push(
                        LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(rate).build()?,
                    );
                }
            }
        }
    }
    let some = |list: Vec<LinuxThrottleDevice>| Some(list).filter(|list| !list.is_empty());
    let [read_bps, write_bps, read_iops, write_iops] = limits;
    all.set_weight_device(Some(weights).filter(|list| !list.is_empty()))
        .set_throttle_read_bps_device(some(read_bps))
        .set_throttle_write_bps_device(some(write_bps))
        .set_throttle_read_iops_device(some(read_iops))
        .set_throttle_write_iops_device(some(write_iops));
    Ok(all)
}

fn weight(amount: &Amount) -> Result<u16, String> {
    let value = amount.value()?;
    u16::try_from(value)
        .ok()
        .filter(|weight| WEIGHTS.contains(weight))
        .ok_or_else(|| format!("weight {value} is not in {} to {}", WEIGHTS.start(), WEIGHTS.end()))
}

/// The numbers of the block devices that the patterns name, without duplicates. Links such as those of /dev/disk/by-id
/// are followed; a partition has no I/O control of its own.
fn block_devices(patterns: &[String]) -> Result<BTreeSet<(i64, i64)>, String> {
    let mut found = BTreeSet::new();
    for pattern in patterns {
        let mut any = false;
        for path in matches(pattern)? {
            let Ok(stat) = rustix::fs::stat(&path) else { continue };
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            let partition = format!("/sys/dev/block/{major}:{minor}/partition");
            if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
                && !Path::new(&partition).exists()
            {
                found.insert((i64::from(major), i64::from(minor)));
                any = true;
            }
        }
        if !any {
            return Err(format!("{pattern:?} is no whole block device of this node"));
        }
    }
    Ok(found)
}

/// Paths that a pattern names, with `*` and `?` in its last component.
fn matches(pattern: &str) -> Result<Vec<PathBuf>, String> {
    let path = Path::new(pattern);
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Err(format!("{pattern:?} is no path"));
    };
    if !path.is_absolute() || pattern.contains('[') || dir.to_string_lossy().contains(['*', '?']) {
        return Err(format!("{pattern:?} is not an absolute path with * and ? in its last part only"));
    }
    if !name.contains(['*', '?']) {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let fits = |entry: &std::fs::DirEntry| {
        entry.file_name().to_str().is_some_and(|n| fits(name.as_bytes(), n.as_bytes()))
    };
    Ok(entries.flatten().filter(fits).map(|entry| entry.path()).collect())
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((b'*', pattern)), _) => (0..=name.len()).any(|skipped| fits(pattern, &name[skipped..])),
        (Some((b'?', pattern)), Some((_, name))) => fits(pattern, name),
        (Some((wanted, pattern)), Some((found, name))) => wanted == found && fits(pattern, name),
        (Some(_), None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blockio.yaml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    /// A block device of this machine that is not a partition, if any.
    fn device() -> Option<(String, i64, i64)> {
        let name = std::fs::read_dir("/sys/block").ok()?.flatten().next()?.file_name().into_string().ok()?;
        let numbers = std::fs::read_to_string(format!("/sys/block/{name}/dev")).ok()?;
        let (major, minor) = numbers.trim().split_once(':')?;
        let path = format!("/dev/{name}");
        Path::new(&path).exists().then(|| (path, major.parse().unwrap(), minor.parse().unwrap()))
    }

    #[test]
    fn a_class_is_weights_and_limits_of_devices() {
        let (_dir, path) = file("Classes:\n  low:\n    - Weight: 80\n  empty: []\n");
        let low = class(&path, "low").unwrap();
        assert_eq!((low.weight(), low.weight_device()), (Some(80), &None));
        assert_eq!(class(&path, "empty").unwrap(), LinuxBlockIo::default());
        let Some((device, major, minor)) = device() else { return };
        let text = format!(
            "Classes:\n  slow:\n    - Devices: [{device}]\n      ThrottleReadBps: 50M\n      \
             ThrottleWriteIOPS: 10k\n      Weight: \"20\"\n"
        );
        let (_dir, path) = file(&text);
        let slow = class(&path, "slow").unwrap();
        let read = &slow.throttle_read_bps_device().as_ref().unwrap()[0];
        assert_eq!((read.major(), read.minor(), read.rate()), (major, minor, 50_000_000));
        assert_eq!(slow.throttle_write_iops_device().as_ref().unwrap()[0].rate(), 10_000);
        assert_eq!(slow.weight_device().as_ref().unwrap()[0].weight(), Some(20));
        assert_eq!(slow.throttle_write_bps_device(), &None);
    }

    #[test]
    fn what_cannot_be_given_is_an_error() {
        let none = class(Path::new(""), "low").unwrap_err();
        assert!(matches!(none, BlockIoError::NotConfigured { .. }));
        let (_dir, path) = file("Classes:\n  low:\n    - Weight: 80\n");
        assert!(matches!(class(&path, "high"), Err(BlockIoError::Unknown { .. })));
        for rule in [
            "Weight: 5",
            "Weight: 2000",
            "Wait: 80",
            "ThrottleReadBps: 1M",
            "{ Devices: [/dev/null], Weight: 80 }",
            "{ Devices: [/no/such/*], Weight: 80 }",
            "{ Devices: [dev], Weight: 80 }",
            "{ Devices: [\"/dev/*/x\"], Weight: 80 }",
        ] {
            let (_dir, path) = file(&format!("Classes:\n  c:\n    - {rule}\n"));
            assert!(matches!(class(&path, "c"), Err(BlockIoError::File { .. })), "{rule}");
        }
    }

    #[test]
    fn patterns_are_matched_whole() {
        for (pattern, name, expected) in [
            ("sd*", "sda", true),
            ("sd?", "sda", true),
            ("sd?", "sda1", false),
            ("*SSD*", "ata-SSD-1", true),
            ("*", "", true),
            ("a", "ab", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        assert_eq!(Amount::Text("2Ki".into()).value(), Ok(2048));
        assert!(Amount::Text("x".into()).value().is_err() && Amount::Text("1Ei".into()).value().is_err());
    }
}
