//! `images verify`: faults on standard output as they are found; on a terminal also the current item.

use super::connection::Client;
use super::error::CliError;
use super::out::{self, Block};
use super::text;
use crate::admin::proto as pb;
use crate::model::plain;
use pb::checked::Outcome;
use pb::verify_event::Event;
use serde_json::{Value, json};

/// Fails if anything stays damaged or could not be checked.
pub(super) async fn run(
    client: &mut Client,
    names: Vec<String>,
    repair: bool,
    json: bool,
) -> Result<(), CliError> {
    let mut events = client.verify(pb::VerifyRequest { names, repair }).await?.into_inner();
    let mut block = Block::is_possible().then(Block::default);
    let mut told = Vec::new();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Checked(checked)) => {
                if let Some(block) = &mut block {
                    block.draw(&current(&checked, Block::size().0));
                }
                if json {
                    told.extend(as_json(&checked));
                } else if let Some(line) = line(&checked) {
                    out::line(&line);
                }
            }
            Some(Event::Summary(summary)) => {
                block.iter_mut().for_each(|block| block.draw(&[]));
                if json {
                    out::json(&json!({ "events": told, "summary": summary_json(&summary) }));
                } else {
                    out::line(&summed(&summary));
                }
                let well = summary.unknown == 0 && summary.damaged == summary.repaired;
                return if well { Ok(()) } else { Err(CliError::Told) };
            }
            None => {}
        }
    }
    Err(CliError::NoResult)
}

/// The terminal's last line: the current item, cleared before a line of the result.
fn current(checked: &pb::Checked, columns: usize) -> Vec<String> {
    if checked.outcome() != Outcome::Begun {
        return Vec::new();
    }
    let line = format!("looking at {}, {}", checked.subject, text::bytes(checked.bytes));
    vec![line.chars().take(columns).collect()]
}

/// Good ones are only counted.
fn line(checked: &pb::Checked) -> Option<String> {
    let subject = &checked.subject;
    let line = match checked.outcome() {
        Outcome::Begun | Outcome::Good => return None,
        Outcome::Damaged => format!("{subject}: damaged: {}", checked.findings.join("; ")),
        Outcome::Unknown => format!("{subject}: cannot be looked at: {}", checked.error),
        Outcome::Repaired => format!("{subject}: repaired"),
        Outcome::RepairFailed => format!("{subject}: not repaired: {}", checked.error),
    };
    // Findings name files of images.
    Some(plain::marked(&line).into_owned())
}

fn summed(summary: &pb::VerifySummary) -> String {
    let pb::VerifySummary { good, inodes_only, damaged, repaired, unknown, bytes } = summary;
    let mut text = format!("{good} good, {damaged} damaged, {repaired} repaired");
    if *unknown > 0 {
        text.push_str(&format!(", {unknown} not looked at"));
    }
    if *inodes_only > 0 {
        text.push_str(&format!("; of {inodes_only} good ones only the inodes were counted"));
    }
    format!("layers and configs: {text}; {} on disk", text::bytes(*bytes))
}

fn as_json(checked: &pb::Checked) -> Option<Value> {
    let outcome = match checked.outcome() {
        Outcome::Begun => return None,
        Outcome::Good => "good",
        Outcome::Damaged => "damaged",
        Outcome::Unknown => "unknown",
        Outcome::Repaired => "repaired",
        Outcome::RepairFailed => "repair_failed",
    };
    Some(json!({
        "subject": checked.subject,
        "outcome": outcome,
        "bytes": checked.bytes,
        "inodes_only": checked.inodes_only,
        "findings": checked.findings,
        "error": checked.error,
    }))
}

fn summary_json(summary: &pb::VerifySummary) -> Value {
    json!({
        "good": summary.good,
        "inodes_only": summary.inodes_only,
        "damaged": summary.damaged,
        "repaired": summary.repaired,
        "unknown": summary.unknown,
        "bytes": summary.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wrong_is_told_and_all_is_counted() {
        let checked = |outcome: Outcome| pb::Checked {
            subject: "layer a".into(),
            outcome: outcome.into(),
            findings: vec!["x: missing".into(), "y: missing".into()],
            error: "no space".into(),
            ..Default::default()
        };
        let told = |outcome| line(&checked(outcome));
        assert_eq!((told(Outcome::Begun), told(Outcome::Good)), (None, None));
        assert_eq!(told(Outcome::Damaged).unwrap(), "layer a: damaged: x: missing; y: missing");
        assert_eq!(told(Outcome::RepairFailed).unwrap(), "layer a: not repaired: no space");
        let forged =
            pb::Checked { findings: vec!["x\nlayer b: repaired".into()], ..checked(Outcome::Damaged) };
        assert_eq!(line(&forged).unwrap().lines().count(), 1);
        assert_eq!(current(&checked(Outcome::Begun), 18), ["looking at layer a"]);
        assert!(
            current(&checked(Outcome::Good), 80).is_empty() && as_json(&checked(Outcome::Begun)).is_none()
        );
        let summary = pb::VerifySummary { good: 3, damaged: 1, bytes: 2000, ..Default::default() };
        assert_eq!(summed(&summary), "layers and configs: 3 good, 1 damaged, 0 repaired; 2.0 kB on disk");
    }
}
