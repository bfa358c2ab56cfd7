//! `images pull`: progress on standard error (a redrawn block on a terminal, lines elsewhere), the id on standard
//! output.

use super::connection::Client;
use super::error::CliError;
use super::meter::{Meter, rate};
use super::out::{self, Block};
use super::text;
use crate::admin::proto as pb;
use pb::layer_progress::State;
use pb::pull_event::Event;
use std::time::{Duration, Instant};

pub(super) async fn run(
    client: &mut Client,
    reference: String,
    credentials: Option<pb::Credentials>,
) -> Result<(), CliError> {
    let request = pb::PullRequest { reference: reference.clone(), credentials };
    let mut events = client.pull(request).await?.into_inner();
    let begun = Instant::now();
    let mut show = if Block::is_possible() {
        Show::Block(Block::default(), Meter::default())
    } else {
        Show::Lines(Lines::default())
    };
    let mut last = pb::Progress::default();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Progress(progress)) => {
                show.progress(&reference, &progress, begun.elapsed());
                last = progress;
            }
            Some(Event::Result(result)) => {
                out::note(&summary(&reference, &last, begun.elapsed()));
                out::line(&result.id);
                return Ok(());
            }
            None => {}
        }
    }
    Err(CliError::NoResult)
}

#[derive(Debug)]
enum Show {
    Block(Block, Meter),
    Lines(Lines),
}

impl Show {
    fn progress(&mut self, reference: &str, progress: &pb::Progress, elapsed: Duration) {
        match self {
            Self::Block(block, meter) => {
                let now = meter.rate(elapsed, totals(progress).received);
                block.draw(&lines(reference, progress, now, Block::size()));
            }
            Self::Lines(lines) => lines.next(reference, progress).iter().for_each(|line| out::note(line)),
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    /// Bytes of the layers to fetch at the start.
    size: u64,
    received: u64,
    unpacked: usize,
    present: usize,
    retries: u32,
}

fn totals(progress: &pb::Progress) -> Totals {
    let mut totals = Totals::default();
    for layer in &progress.layers {
        if layer.state() == State::Present {
            totals.present += 1;
            continue;
        }
        totals.size = totals.size.saturating_add(layer.size);
        totals.received = totals.received.saturating_add(layer.received);
        totals.retries = totals.retries.saturating_add(layer.retries);
        if layer.state() == State::Unpacked {
            totals.unpacked += 1;
        }
    }
    totals
}

/// The block on a terminal: a line per layer while they fit, and one for all.
fn lines(
    reference: &str,
    progress: &pb::Progress,
    rate: u64,
    (columns, rows): (usize, usize),
) -> Vec<String> {
    if progress.layers.is_empty() {
        return vec![cut(&format!("{reference}: asking the registry"), columns)];
    }
    // One for the total, one for the cursor.
    let room = rows.saturating_sub(2);
    let mut shown: Vec<&pb::LayerProgress> = progress.layers.iter().collect();
    if shown.len() > room {
        // Those that are done can be missed best.
        shown.sort_by_key(|layer| layer.state() != State::Downloading);
        shown.truncate(room);
    }
    let mut lines: Vec<String> = shown.into_iter().map(|layer| cut(&layer_line(layer), columns)).collect();
    let Totals { size, received, unpacked, present, retries } = totals(progress);
    let mut total = format!(
        "total         {:>9} of {:>9}  {}/s  {unpacked} of {} unpacked",
        text::bytes(received),
        text::bytes(size),
        text::bytes(rate),
        text::count(progress.layers.len() - present, "layer"),
    );
    if present > 0 {
        total.push_str(&format!(", {present} present before"));
    }
    if retries > 0 {
        total.push_str(&format!(", {}", asked_again(retries)));
    }
    lines.push(cut(&total, columns));
    lines
}

fn layer_line(layer: &pb::LayerProgress) -> String {
    let name = text::short(&layer.digest);
    let size = text::bytes(layer.size);
    let bytes = || format!("{:>9} of {size:>9}", text::bytes(layer.received));
    let mut line = match layer.state() {
        State::Waiting => format!("{name}  {:>9}    {size:>9}  waiting", ""),
        State::Downloading => format!("{name}  {}  from {}", bytes(), layer.host),
        State::Unpacked => format!("{name}  {}  unpacked", bytes()),
        State::Present => format!("{name}  {:>9}    {size:>9}  present before", ""),
        State::Failed => format!("{name}  {}  failed", bytes()),
    };
    if layer.retries > 0 {
        line.push_str(&format!(", {}", asked_again(layer.retries)));
    }
    line
}

fn asked_again(times: u32) -> String {
    if times == 1 { "asked again once".to_owned() } else { format!("asked again {times} times") }
}

fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

/// Lines for a log: one at the start, one per finished layer.
#[derive(Debug, Default)]
struct Lines {
    started: bool,
    done: Vec<String>,
}

impl Lines {
    fn next(&mut self, reference: &str, progress: &pb::Progress) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.started && !progress.layers.is_empty() {
            self.started = true;
            let (layers, Totals { size, present, .. }) = (&progress.layers, totals(progress));
            let to_fetch = text::count(layers.len() - present, "layer");
            lines.push(format!("{reference}: {to_fetch} to fetch, {}; {present} present", text::bytes(size)));
        }
        for layer in &progress.layers {
            if matches!(layer.state(), State::Unpacked | State::Failed) && !self.done.contains(&layer.digest)
            {
                self.done.push(layer.digest.clone());
                lines.push(layer_line(layer));
            }
        }
        lines
    }
}

fn summary(reference: &str, progress: &pb::Progress, took: Duration) -> String {
    let Totals { received, .. } = totals(progress);
    let time = format!("{}.{} s", took.as_secs(), took.subsec_millis() / 100);
    if received == 0 {
        return format!("{reference}: there in {time}, nothing had to be fetched");
    }
    let mut hosts: Vec<&str> =
        progress.layers.iter().map(|l| l.host.as_str()).filter(|h| !h.is_empty()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    format!(
        "{reference}: pulled {} from {} in {time}, {}/s",
        text::bytes(received),
        hosts.join(", "),
        text::bytes(rate(received, took))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(digit: char, size: u64, received: u64, state: State) -> pb::LayerProgress {
        pb::LayerProgress {
            digest: format!("sha256:{}", digit.to_string().repeat(64)),
            size,
            received,
            state: state.into(),
            host: if received > 0 { "m.example".into() } else { String::new() },
            retries: u32::from(state == State::Downloading),
        }
    }

    fn progress() -> pb::Progress {
        pb::Progress {
            layers: vec![
                layer('a', 5_000_000, 0, State::Present),
                layer('b', 2_000_000, 2_000_000, State::Unpacked),
                layer('c', 8_000_000, 1_000_000, State::Downloading),
                layer('d', 1_000, 0, State::Waiting),
            ],
        }
    }

    #[test]
    fn a_block_fits_its_terminal() {
        let block = lines("x", &progress(), 1_500_000, (100, 24));
        assert_eq!(block, [
            "aaaaaaaaaaaa                  5.0 MB  present before",
            "bbbbbbbbbbbb     2.0 MB of    2.0 MB  unpacked",
            "cccccccccccc     1.0 MB of    8.0 MB  from m.example, asked again once",
            "dddddddddddd                  1.0 kB  waiting",
            "total            3.0 MB of   10.0 MB  1.5 MB/s  1 of 3 layers unpacked, 1 present before, asked again once",
        ].map(|line| line.chars().take(100).collect::<String>()));
        let small = lines("x", &progress(), 0, (20, 4));
        assert!(
            small.len() == 3 && small[0].starts_with("cccc") && small.iter().all(|l| l.chars().count() <= 20)
        );
        assert_eq!(lines("x", &pb::Progress::default(), 0, (80, 24)), ["x: asking the registry"]);
    }

    #[test]
    fn a_log_gets_each_layer_once() {
        let mut lines = Lines::default();
        assert!(lines.next("x", &pb::Progress::default()).is_empty());
        assert_eq!(
            lines.next("x", &progress()),
            ["x: 3 layers to fetch, 10.0 MB; 1 present", "bbbbbbbbbbbb     2.0 MB of    2.0 MB  unpacked"]
        );
        assert!(lines.next("x", &progress()).is_empty());
    }

    #[test]
    fn the_summary_names_the_hosts() {
        assert_eq!(
            summary("x", &progress(), Duration::from_millis(1500)),
            "x: pulled 3.0 MB from m.example in 1.5 s, 2.0 MB/s"
        );
        let there = summary("x", &pb::Progress::default(), Duration::from_millis(40));
        assert_eq!(there, "x: there in 0.0 s, nothing had to be fetched");
    }
}
