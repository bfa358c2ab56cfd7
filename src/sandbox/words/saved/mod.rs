//! The texts of records, version 1: types of their own, apart from those that the daemon works with, so that no change there
//! changes what an older or newer daemon reads. Each is converted without `..`: a new field does not compile before somebody
//! decides how it is saved. Pure.
//!
//! A field that came after a type was first saved is a default where it is missing: never a reason not to read a record. What
//! makes a record what it is (its id, its image) is required. A change that an older daemon would misread needs a new version.
//!
//! ```text
//! spec.json     request.rs    SandboxSpec, ContainerSpec
//! state.json    state.rs      PodState, ContainerRecord
//! ```

mod request;
mod state;

pub(in crate::sandbox) use request::{ContainerSpec, SandboxSpec};
pub(in crate::sandbox) use state::{ContainerRecord, PodState};

use crate::model::{ContainerId, ImageId, SandboxId, Timestamp};
use podwright_monitor_proto::ProcessId;
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// What can still be said of a container whose record cannot be read as a whole: every field of the text that can be read
/// alone, and defaults. Its ids are those of its place.
pub(in crate::sandbox) fn salvaged(
    text: &[u8],
    pod: &SandboxId,
    id: &ContainerId,
) -> serde_json::Result<ContainerSpec> {
    let found: serde_json::Map<String, Value> = serde_json::from_slice(text).unwrap_or_default();
    let ids = json!({ "id": id, "sandbox_id": pod });
    let mut fields = json!({
        "id": id, "sandbox_id": pod, "name": id, "created_at": 0, "image": { "id": UNKNOWN_IMAGE },
    });
    for (name, value) in found.into_iter().filter(|(name, _)| ids.get(name).is_none()) {
        let before = fields[&name].take();
        fields[&name] = value;
        if ContainerSpec::deserialize(&fields).is_err() {
            match before {
                Value::Null => fields.as_object_mut().and_then(|fields| fields.remove(&name)),
                before => fields.as_object_mut().and_then(|fields| fields.insert(name, before)),
            };
        }
    }
    serde_json::from_value(fields)
}

/// No image has this id.
const UNKNOWN_IMAGE: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// A saved form of `Live`.
pub(in crate::sandbox) trait Saved<Live>: Sized {
    /// To be written.
    fn save(live: &Live) -> Self;
    /// What was read.
    fn live(self) -> Live;
}

/// What is saved as it is.
macro_rules! plain {
    ($($kind:ty),* $(,)?) => {
        $(impl Saved<$kind> for $kind {
            fn save(live: &$kind) -> Self {
                live.clone()
            }

            fn live(self) -> $kind {
                self
            }
        })*
    };
}

plain!(bool, u16, u32, u64, i32, i64, String, PathBuf, IpAddr);
plain!((String, String), BTreeMap<String, String>, ContainerId, SandboxId, ImageId, Timestamp, ProcessId);

impl<Live, S: Saved<Live>> Saved<Vec<Live>> for Vec<S> {
    fn save(live: &Vec<Live>) -> Self {
        live.iter().map(S::save).collect()
    }

    fn live(self) -> Vec<Live> {
        self.into_iter().map(S::live).collect()
    }
}

impl<Live, S: Saved<Live>> Saved<Option<Live>> for Option<S> {
    fn save(live: &Option<Live>) -> Self {
        live.as_ref().map(S::save)
    }

    fn live(self) -> Option<Live> {
        self.map(S::live)
    }
}

impl<Live, S: Saved<Live>> Saved<Box<Live>> for Box<S> {
    fn save(live: &Box<Live>) -> Self {
        Box::new(S::save(live))
    }

    fn live(self) -> Box<Live> {
        Box::new((*self).live())
    }
}

/// A structure with the fields of a live one of the same name: those that every record has, and those that are defaults where
/// they are missing.
macro_rules! structure {
    ($(#[$meta:meta])* $live:ident :: $name:ident { $($field:ident: $kind:ty),* $(,)? } $(else default { $($(#[$new_meta:meta])* $new:ident: $new_kind:ty),* $(,)? })?) => {
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        $(#[$meta])*
        pub(in crate::sandbox) struct $name {
            $($field: $kind,)*
            $($(#[serde(default)] $(#[$new_meta])* $new: $new_kind,)*)?
        }

        impl Saved<$live::$name> for $name {
            fn save(live: &$live::$name) -> Self {
                let $live::$name { $($field,)* $($($new,)*)? } = live;
                Self { $($field: <$kind>::save($field),)* $($($new: <$new_kind>::save($new),)*)? }
            }

            fn live(self) -> $live::$name {
                let Self { $($field,)* $($($new,)*)? } = self;
                $live::$name { $($field: $field.live(),)* $($($new: $new.live(),)*)? }
            }
        }
    };
}

/// An enumeration with the variants of a live one of the same name.
macro_rules! variants {
    ($(#[$meta:meta])* $live:ident :: $name:ident { $($(#[$variant_meta:meta])* $variant:ident $(($inner:ident: $kind:ty))? $({ $($field:ident: $field_kind:ty),* })?,)* }) => {
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        $(#[$meta])*
        pub(in crate::sandbox) enum $name {
            $($(#[$variant_meta])* $variant $(($kind))? $({ $($field: $field_kind),* })?,)*
        }

        impl Saved<$live::$name> for $name {
            fn save(live: &$live::$name) -> Self {
                match live {
                    $($live::$name::$variant $(($inner))? $({ $($field),* })? => {
                        Self::$variant $((<$kind>::save($inner)))? $({ $($field: <$field_kind>::save($field)),* })?
                    })*
                }
            }

            fn live(self) -> $live::$name {
                match self {
                    $(Self::$variant $(($inner))? $({ $($field),* })? => {
                        $live::$name::$variant $(($inner.live()))? $({ $($field: $field.live()),* })?
                    })*
                }
            }
        }
    };
}

use structure;
use variants;

#[cfg(test)]
mod tests;
