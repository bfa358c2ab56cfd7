//! containerd's store: names in its metadata database, blobs in its content store. The layout is containerd's
//! `core/metadata/buckets.go`.

use super::bolt::{Bolt, Bucket, Fault, Value};
use super::{Candidate, broken};
use crate::images::digest::Digest;
use crate::images::error::{ImageError, cut};
use crate::images::manifest::Descriptor;
use crate::images::reference::Reference;
use crate::images::source::LocalSource;
use crate::images::transfer::files::Files;
use crate::images::transfer::layout::Layout;
use crate::images::transfer::offer::Offer;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// The namespace of the kubelet's images.
const NAMESPACE: &[u8] = b"k8s.io";
/// How often the database is read again when containerd writes meanwhile. Reading takes milliseconds.
const TRIES: usize = 20;

/// An image's name with what it points to.
struct Row {
    name: String,
    target: Result<Descriptor, &'static str>,
}

/// The images of the store: names of one target are one image.
pub(super) fn candidates(root: &Path) -> Result<Vec<Candidate>, ImageError> {
    let name = format!("containerd at {}", root.display());
    let database = root.join("io.containerd.metadata.v1.bolt/meta.db");
    let files = Files::Directory { path: root.join("io.containerd.content.v1.content"), name: name.clone() };
    let source: Arc<dyn LocalSource> = Arc::new(Layout(Arc::new(files)));
    let mut found: Vec<Candidate> = Vec::new();
    let mut places: HashMap<Digest, usize> = HashMap::new();
    for Row { name, target } in rows(&database, &name)? {
        // CRI keeps each image under its id too.
        if Digest::parse(&name).is_ok() {
            continue;
        }
        let (reference, top) = match (Reference::parse(&name), target) {
            (Ok(reference), Ok(top)) => (reference, top),
            (Err(error), _) => {
                found.push(Candidate { name: cut(&name), offer: Err(error) });
                continue;
            }
            (_, Err(reason)) => {
                let error = broken(&database.display().to_string(), format!("image {name}: {reason}"));
                found.push(Candidate { name: cut(&name), offer: Err(error) });
                continue;
            }
        };
        let same = places.get(&top.digest).and_then(|place| found[*place].offer.as_mut().ok());
        match same {
            Some(offer) => offer.references.push(reference),
            None => {
                places.insert(top.digest.clone(), found.len());
                let (source, digests) = (Arc::clone(&source), vec![top.digest.clone()]);
                let offer = Offer { source, top, id: None, digests, references: vec![reference] };
                found.push(Candidate { name, offer: Ok(offer) });
            }
        }
    }
    Ok(found)
}

fn rows(path: &Path, store: &str) -> Result<Vec<Row>, ImageError> {
    let failed = |fault| match fault {
        Fault::Io(e) => ImageError::io("read", path, e),
        Fault::Corrupt(reason) => broken(store, format!("{}: {reason}", path.display())),
    };
    for _ in 0..TRIES {
        let bolt = Bolt::open(path).map_err(failed)?;
        let read = read(&bolt);
        // A fault may come from pages that were written meanwhile.
        if bolt.is_current().map_err(failed)? {
            return read.map_err(failed);
        }
    }
    Err(broken(store, "containerd writes all the time; stop it or try again"))
}

fn read(bolt: &Bolt) -> Result<Vec<Row>, Fault> {
    let mut at = bolt.root();
    for name in [b"v1".as_slice(), NAMESPACE, b"images"] {
        match bolt.bucket(&at, name)? {
            Some(bucket) => at = bucket,
            None => return Ok(Vec::new()),
        }
    }
    let mut rows = Vec::new();
    for (name, value) in bolt.entries(&at)? {
        if let (Ok(name), Value::Bucket(image)) = (String::from_utf8(name), value) {
            rows.push(Row { name, target: target(bolt, &image)? });
        }
    }
    Ok(rows)
}

fn target(bolt: &Bolt, image: &Bucket) -> Result<Result<Descriptor, &'static str>, Fault> {
    let Some(target) = bolt.bucket(image, b"target")? else { return Ok(Err("no target")) };
    let (mut digest, mut media_type, mut size) = (None, String::new(), None);
    for (key, value) in bolt.entries(&target)? {
        let Value::Bytes(value) = value else { continue };
        match key.as_slice() {
            b"digest" => digest = String::from_utf8(value).ok().and_then(|d| Digest::parse(&d).ok()),
            b"mediatype" => media_type = String::from_utf8(value).unwrap_or_default(),
            b"size" => size = varint(&value),
            _ => {}
        }
    }
    Ok(match (digest, size) {
        (Some(digest), Some(size)) => Ok(Descriptor::typed(&media_type, digest, size)),
        _ => Err("no usable target"),
    })
}

/// Go's `binary.PutVarint` of a number that is not negative.
fn varint(bytes: &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        let shifted = u64::from(byte & 0x7f).checked_shl(u32::try_from(index * 7).ok()?)?;
        value |= shifted;
        if byte & 0x80 == 0 {
            // The lowest bit is the sign.
            return (value & 1 == 0).then_some(value >> 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::varint;

    #[test]
    fn numbers_as_go_writes_them() {
        assert_eq!(varint(&[0]), Some(0));
        assert_eq!(varint(&[0xd2, 0x09]), Some(617));
        assert_eq!(varint(&[1]), None, "negative");
        assert_eq!(varint(&[0x80]), None, "cut off");
        assert_eq!(varint(&[0xff; 12]), None);
    }
}
