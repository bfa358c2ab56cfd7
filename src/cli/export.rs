//! `images export`. The daemon writes the file itself; it opens standard output through this process's entry in /proc.

use super::arguments::Format;
use super::connection::Client;
use super::error::CliError;
use super::out;
use crate::admin::proto as pb;
use pb::export_request::Format as Form;
use std::io::IsTerminal as _;
use std::path::Path;

pub(super) async fn run(
    client: &mut Client,
    names: Vec<String>,
    output: &Path,
    format: Format,
    gzip: bool,
) -> Result<(), CliError> {
    let path = if output == Path::new("-") { standard_output()? } else { place(output)? };
    let form = match format {
        Format::Oci => Form::Oci,
        Format::Docker => Form::Docker,
        Format::OciDir => Form::OciDir,
    };
    let request = pb::ExportRequest { names, path, format: form.into(), gzip };
    let answer = client.export(request).await?.into_inner();
    // Beside the result: standard output may be the archive.
    answer.ids.iter().for_each(|id| out::note(&format!("exported {id}")));
    Ok(())
}

fn standard_output() -> Result<String, CliError> {
    if std::io::stdout().is_terminal() {
        let reason = "it is a terminal: name a file, or lead it to one by >".to_owned();
        return Err(CliError::Output { what: "standard output".into(), reason });
    }
    Ok(format!("/proc/{}/fd/1", std::process::id()))
}

/// The absolute path for the daemon, whose working directory differs.
fn place(output: &Path) -> Result<String, CliError> {
    let failed = |reason: String| CliError::Output { what: output.display().to_string(), reason };
    let path = std::path::absolute(output).map_err(|e| failed(e.to_string()))?;
    path.into_os_string().into_string().map_err(|_| failed("its path is not UTF-8".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_need_not_be_there() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(Path::new(&place(Path::new("new/x.tar")).unwrap()), here.join("new/x.tar"));
        assert!(place(Path::new("")).unwrap_err().to_string().starts_with("write : "));
    }
}
