//! CRIU moves a container into its new pod's namespaces, and then writes the old pod's host name and IPC settings into
//! them. The copies of these two images are changed to the new pod's values, so that nothing changes. Their format is
//! CRIU's: two magic numbers, a length, a protobuf message.

use crate::sandbox::words::error::SandboxError;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::Path;

/// First number of every image (CRIU, include/magic.h).
const COMMON: u32 = 0x5456_4319;
/// Second number of the image of the host name.
const UTS: u32 = 0x5447_3203;
/// Second number of the image of the settings of IPC.
const IPC_VAR: u32 = 0x5311_5007;
/// Beginnings of their names; a number follows.
const UTS_NAME: &str = "utsns-";
const IPC_VAR_NAME: &str = "ipcns-var-";
/// Bytes of such an image: two names of 64 bytes, or some twenty numbers.
const MAX_IMAGE: u64 = 64 << 10;
/// The settings with their fields in the messages (CRIU, images/utsns.proto and ipc-var.proto).
const NAMES: [(&str, u64); 2] = [("kernel/hostname", 1), ("kernel/domainname", 2)];
const IPC: [(&str, u64); 14] = [
    ("kernel/sem", 1),
    ("kernel/msgmax", 2),
    ("kernel/msgmnb", 3),
    ("kernel/msgmni", 4),
    ("kernel/auto_msgmni", 5),
    ("kernel/shmmax", 6),
    ("kernel/shmall", 7),
    ("kernel/shmmni", 8),
    ("kernel/shm_rmid_forced", 9),
    ("fs/mqueue/queues_max", 10),
    ("fs/mqueue/msg_max", 11),
    ("fs/mqueue/msgsize_max", 12),
    ("fs/mqueue/msg_default", 13),
    ("fs/mqueue/msgsize_default", 14),
];

/// Settings of a pod's namespaces by their paths below `/proc/sys`.
pub(in crate::sandbox) type Settings = BTreeMap<&'static str, String>;

/// All that CRIU would write.
pub(in crate::sandbox) fn settings() -> Vec<&'static str> {
    NAMES.iter().chain(&IPC).map(|(name, _)| *name).collect()
}

/// Changes the images in `dir`. Blocking.
pub(in crate::sandbox) fn adapt(dir: &Path, of_pod: &Settings) -> Result<(), SandboxError> {
    for entry in std::fs::read_dir(dir).map_err(SandboxError::io("read", dir))? {
        let path = entry.map_err(SandboxError::io("read", dir))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let magic = match (name.starts_with(UTS_NAME), name.starts_with(IPC_VAR_NAME)) {
            (true, _) => UTS,
            (_, true) => IPC_VAR,
            _ => continue,
        };
        let failed = |e| SandboxError::io("change CRIU's image", &path)(e);
        let file = std::fs::File::open(&path).map_err(failed)?;
        let mut old = Vec::new();
        file.take(MAX_IMAGE + 1).read_to_end(&mut old).map_err(failed)?;
        if u64::try_from(old.len()).unwrap_or(u64::MAX) > MAX_IMAGE {
            return Err(failed(bad("it is larger than any of its kind")));
        }
        let (head, message) = split(&old, magic).ok_or_else(|| failed(bad("it is not of a known form")))?;
        let message = if magic == UTS { uts(of_pod) } else { ipc(message, of_pod).map_err(failed)? };
        let length = u32::try_from(message.len()).map_err(|_| failed(bad("it is too large")))?;
        let new = [head, &length.to_le_bytes(), &message].concat();
        std::fs::write(&path, new).map_err(failed)?;
    }
    Ok(())
}

fn bad(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Both magic numbers, and the message after them.
fn split(image: &[u8], magic: u32) -> Option<(&[u8], &[u8])> {
    let (head, rest) = image.split_at_checked(8)?;
    if head != [COMMON.to_le_bytes(), magic.to_le_bytes()].concat() {
        return None;
    }
    let (length, message) = rest.split_at_checked(4)?;
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    Some((head, message.get(..length)?))
}

fn uts(of_pod: &Settings) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, field) in NAMES {
        let value = of_pod.get(name).map(String::as_str).unwrap_or_default();
        put(field << 3 | BYTES, &mut message);
        put(u64::try_from(value.len()).unwrap_or_default(), &mut message);
        message.extend_from_slice(value.as_bytes());
    }
    message
}

/// The message with the pod's numbers; those that the pod's kernel lacks stay.
fn ipc(message: &[u8], of_pod: &Settings) -> io::Result<Vec<u8>> {
    let mut numbers = read(message).ok_or_else(|| bad("it is no message of numbers"))?;
    for (name, field) in IPC {
        let Some(text) = of_pod.get(name) else { continue };
        let values = text.split_whitespace().map(str::parse).collect::<Result<_, _>>();
        numbers.insert(field, values.map_err(|_| bad("a setting of the pod is no number"))?);
    }
    let mut new = Vec::new();
    for (field, values) in &numbers {
        for value in values {
            put(field << 3 | NUMBER, &mut new);
            put(*value, &mut new);
        }
    }
    Ok(new)
}

/// The encoding of a field, in the low bits of its key (protobuf's wire types): a number of seven bits per byte.
const NUMBER: u64 = 0;
/// A length, then bytes.
const BYTES: u64 = 2;

fn put(mut number: u64, into: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(number & 0x7f).unwrap_or_default();
        number >>= 7;
        if number == 0 {
            return into.push(low);
        }
        into.push(low | 0x80);
    }
}

fn take(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// The numbers of each field, one by one or several at once.
fn read(mut message: &[u8]) -> Option<BTreeMap<u64, Vec<u64>>> {
    let mut numbers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    while !message.is_empty() {
        let key = take(&mut message)?;
        let values = numbers.entry(key >> 3).or_default();
        match key & 7 {
            NUMBER => values.push(take(&mut message)?),
            BYTES => {
                let length = usize::try_from(take(&mut message)?).ok()?;
                let (mut packed, rest) = message.split_at_checked(length)?;
                message = rest;
                while !packed.is_empty() {
                    values.push(take(&mut packed)?);
                }
            }
            _ => return None,
        }
    }
    Some(numbers)
}

/// Of the fuzz target `checkpoint`: an accepted image becomes another accepted one with the pod's values.
#[cfg(any(test, fuzzing))]
pub(in crate::sandbox) fn fuzz(image: &[u8], names: bool) {
    let of_pod =
        Settings::from([("kernel/hostname", "new".to_owned()), ("kernel/sem", "1 2 3 300".to_owned())]);
    let magic = if names { UTS } else { IPC_VAR };
    let Some((_, message)) = split(image, magic) else { return };
    if names {
        assert!(uts(&of_pod).starts_with(b"\x0a\x03new"));
        return;
    }
    let Ok(new) = ipc(message, &of_pod) else { return };
    let numbers = read(&new).expect("it is read back");
    assert_eq!(numbers.get(&1).map(Vec::as_slice), Some(&[1, 2, 3, 300][..]));
    assert_eq!(ipc(&new, &of_pod).expect("it is taken again"), new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magic: u32, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        [&COMMON.to_le_bytes()[..], &magic.to_le_bytes(), &length.to_le_bytes(), message].concat()
    }

    #[test]
    fn images_say_what_the_new_pod_has() {
        let dir = tempfile::tempdir().unwrap();
        let (uts, var, other) = (
            dir.path().join("utsns-11.img"),
            dir.path().join("ipcns-var-10.img"),
            dir.path().join("core-1.img"),
        );
        std::fs::write(&uts, image(UTS, b"\x0a\x03old\x12\x06(none)")).unwrap();
        // 1: 250, 32000 at once; 2: 8192; 8: 4096; 16: 7.
        let old = b"\x0a\x05\xfa\x01\x80\xfa\x01\x10\x80\x40\x40\x80\x20\x80\x01\x07";
        std::fs::write(&var, image(IPC_VAR, old)).unwrap();
        std::fs::write(&other, "as it was").unwrap();
        let of_pod = Settings::from([
            ("kernel/hostname", "new-name".to_owned()),
            ("kernel/domainname", "(none)".to_owned()),
            ("kernel/sem", "1\t2\t3\t300".to_owned()),
            ("kernel/shmmni", "77".to_owned()),
        ]);
        adapt(dir.path(), &of_pod).unwrap();
        assert_eq!(std::fs::read(&uts).unwrap(), image(UTS, b"\x0a\x08new-name\x12\x06(none)"));
        let new = b"\x08\x01\x08\x02\x08\x03\x08\xac\x02\x10\x80\x40\x40\x4d\x80\x01\x07";
        assert_eq!(std::fs::read(&var).unwrap(), image(IPC_VAR, new));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "as it was");
        let huge = image(IPC_VAR, &vec![0; usize::try_from(MAX_IMAGE).unwrap()]);
        for broken in [&b""[..], b"short", &huge, &image(UTS, b"")[..], &image(IPC_VAR, &[0xff; 20])[..]] {
            std::fs::write(&var, broken).unwrap();
            assert!(adapt(dir.path(), &of_pod).unwrap_err().to_string().contains("ipcns-var-10.img"));
        }
    }
}
