//! The answers of ListContainers and ListPodSandbox. A kubelet calls them every second and little changes in between,
//! so each snapshot keeps its encoded entry, and an answer is a concatenation.
//!
//! On the wire they equal the generated types, and a client decodes them into the same fields.

use super::encode;
use super::proto as pb;
use crate::sandbox::{ContainerSnapshot, PodSnapshot};
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, message, skip_field};
use prost::{DecodeError, Message};
use std::sync::Arc;

/// Number of the only field of both.
const ENTRIES: u32 = 1;

/// An answer with one repeated field.
macro_rules! list {
    ($(#[$doc:meta])* $name:ident { $(#[$field_doc:meta])* $field:ident: $entry:ty }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $name {
            $(#[$field_doc])*
            pub $field: Vec<$entry>,
            /// Entries with their keys and lengths; an answer that was decoded has none.
            encoded: Vec<u8>,
        }

        impl Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                buf.put_slice(&self.encoded);
                message::encode_repeated(ENTRIES, &self.$field, buf);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    ENTRIES => message::merge_repeated(wire_type, &mut self.$field, buf, ctx),
                    _ => skip_field(wire_type, tag, buf, ctx),
                }
            }

            fn encoded_len(&self) -> usize {
                self.encoded.len() + message::encoded_len_repeated(ENTRIES, &self.$field)
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

list! {
    /// The containers.
    ListContainersResponse {
        /// Where it was decoded.
        containers: pb::Container
    }
}

list! {
    /// The pods.
    ListPodSandboxResponse {
        /// Where it was decoded.
        items: pb::PodSandbox
    }
}

impl ListContainersResponse {
    pub(super) fn of(containers: impl Iterator<Item = Arc<ContainerSnapshot>>) -> Self {
        let mut encoded = Vec::new();
        for container in containers {
            let make = || entry(&encode::container(&container));
            encoded.extend_from_slice(container.list_entry.get_or_make(make));
        }
        Self { containers: Vec::new(), encoded }
    }
}

impl ListPodSandboxResponse {
    pub(super) fn of(pods: impl Iterator<Item = Arc<PodSnapshot>>) -> Self {
        let mut encoded = Vec::new();
        for pod in pods {
            let make = || entry(&encode::sandbox(&pod));
            encoded.extend_from_slice(pod.list_entry.get_or_make(make));
        }
        Self { items: Vec::new(), encoded }
    }
}

fn entry(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message::encoded_len(ENTRIES, message));
    message::encode(ENTRIES, message, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_decodes_to_what_was_encoded() {
        let container = |id: &str| pb::Container {
            id: id.to_owned(),
            metadata: Some(pb::ContainerMetadata { name: "c".to_owned(), attempt: 1 }),
            // Longer than a one-byte length can express.
            labels: [("key".to_owned(), "value".repeat(100))].into(),
            ..Default::default()
        };
        let containers = vec![container("a"), pb::Container::default(), container("b")];
        let encoded: Vec<u8> = containers.iter().flat_map(entry).collect();
        let answer = ListContainersResponse { containers: Vec::new(), encoded };
        let bytes = answer.encode_to_vec();
        assert_eq!(bytes.len(), answer.encoded_len());
        let decoded = ListContainersResponse::decode(&*bytes).unwrap();
        assert_eq!(decoded.containers, containers);
        // A client's answer may be encoded again, and a field of a later version does no harm.
        assert_eq!(decoded.encode_to_vec(), bytes);
        let later = [&bytes[..], &[0x12, 1, b'x']].concat();
        assert_eq!(ListContainersResponse::decode(&*later).unwrap(), decoded);
        let none = ListPodSandboxResponse::of(std::iter::empty());
        assert!(none.encode_to_vec().is_empty() && none.encoded_len() == 0);
    }
}
