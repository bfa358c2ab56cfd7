//! `images load`. The daemon reads the file itself; it opens standard input through this process's entry in /proc.

use super::connection::Client;
use super::error::CliError;
use super::out;
use crate::admin::proto as pb;
use crate::model::plain;
use std::io::IsTerminal as _;
use std::path::Path;

pub(super) async fn run(client: &mut Client, file: &Path, name: Option<String>) -> Result<(), CliError> {
    let path = if file == Path::new("-") { standard_input()? } else { absolute(file)? };
    let request = pb::LoadRequest { path, name: name.unwrap_or_default() };
    let answer = client.load(request).await?.into_inner();
    answer.images.iter().for_each(|image| out::line(&told(image)));
    Ok(())
}

fn standard_input() -> Result<String, CliError> {
    if std::io::stdin().is_terminal() {
        let reason = "it is a terminal: name a file, or give one by <".to_owned();
        return Err(CliError::Input { what: "standard input".into(), reason });
    }
    Ok(format!("/proc/{}/fd/0", std::process::id()))
}

/// The absolute path for the daemon, whose working directory differs.
pub(super) fn absolute(file: &Path) -> Result<String, CliError> {
    let failed = |reason: String| CliError::Input { what: file.display().to_string(), reason };
    let path = std::fs::canonicalize(file).map_err(|e| failed(e.to_string()))?;
    path.into_os_string().into_string().map_err(|_| failed("its path is not UTF-8".into()))
}

fn told(image: &pb::LoadedImage) -> String {
    let names = if image.names.is_empty() { "without a name".to_owned() } else { image.names.join(", ") };
    plain::marked(&format!("loaded {} ({names})", image.id)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_here() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x/../a.tar");
        assert!(absolute(&file).unwrap_err().to_string().contains("a.tar"));
        std::fs::create_dir(dir.path().join("x")).unwrap();
        std::fs::write(dir.path().join("a.tar"), "").unwrap();
        assert!(absolute(&file).unwrap().ends_with("/a.tar") && !absolute(&file).unwrap().contains(".."));
    }

    #[test]
    fn an_image_without_names_is_told_by_its_id() {
        let mut image = pb::LoadedImage { id: "sha256:a".into(), names: vec!["x:1".into(), "y:1".into()] };
        assert_eq!(told(&image), "loaded sha256:a (x:1, y:1)");
        image.names.clear();
        assert_eq!(told(&image), "loaded sha256:a (without a name)");
    }
}
