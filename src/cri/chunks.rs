//! Lists as streams: every item exactly once, in messages of bounded size. Owns that size.

use prost::Message;
use tonic::Status;

/// Bytes of one message. A kubelet accepts 16 MiB; a sixteenth of it bounds what a slow client holds and still fits
/// some thousand containers.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Overhead of one item of repeated field 1: its tag, and a length of at most ten bytes.
const ITEM_OVERHEAD: usize = 1 + 10;

/// Messages encoded as the client takes them.
pub(super) type Chunks<R> = tokio_stream::Iter<Box<dyn Iterator<Item = Result<R, Status>> + Send>>;

/// A stream of messages with as many items as fit [`CHUNK_BYTES`], at least one. No items, no message.
pub(super) fn chunks<T: Message + 'static, R: 'static>(
    items: impl Iterator<Item = T> + Send + 'static,
    message: fn(Vec<T>) -> R,
) -> Chunks<R> {
    let messages: Box<dyn Iterator<Item = _> + Send> =
        Box::new(split(items, CHUNK_BYTES).map(move |chunk| Ok(message(chunk))));
    tokio_stream::iter(messages)
}

fn split<T: Message>(items: impl Iterator<Item = T>, limit: usize) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        let mut chunk = vec![items.next()?];
        let mut bytes = size(&chunk[0]);
        while let Some(item) = items.next_if(|next| bytes + size(next) <= limit) {
            bytes += size(&item);
            chunk.push(item);
        }
        Some(chunk)
    })
}

fn size(item: &impl Message) -> usize {
    item.encoded_len() + ITEM_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::super::proto as pb;
    use super::*;
    use tokio_stream::StreamExt as _;

    fn container(id: usize, bytes: usize) -> pb::Container {
        pb::Container { id: format!("{id:0>width$}", width = bytes), ..Default::default() }
    }

    #[test]
    fn every_item_comes_once_and_in_order_whatever_its_size() {
        for sizes in [vec![], vec![10], vec![5000], vec![10; 100], vec![400, 5000, 1, 1, 990, 20, 970, 5000]]
        {
            let items: Vec<_> = sizes.iter().enumerate().map(|(n, bytes)| container(n, *bytes)).collect();
            let chunks: Vec<_> = split(items.clone().into_iter(), 1000).collect();
            for chunk in &chunks {
                assert!(!chunk.is_empty());
                let message = pb::StreamContainersResponse { containers: chunk.clone() };
                assert!(chunk.len() == 1 || message.encoded_len() <= 1000, "{}", message.encoded_len());
            }
            assert_eq!(chunks.concat(), items);
        }
        // A chunk ends only when it is full.
        assert_eq!(split((0..100).map(|n| container(n, 10)), 1000).count(), 3);
    }

    #[tokio::test]
    async fn an_empty_list_is_an_empty_stream() {
        let items = std::iter::empty::<pb::Container>();
        let mut stream = chunks(items, |containers| pb::StreamContainersResponse { containers });
        assert!(stream.next().await.is_none());
    }
}
