//! `braid admin health`: what is wrong, with an exit code for scripts.
//!
//! 0: nothing. 1: warnings only. 2: errors, or nobody could be asked, which a script must not take for a mere warning.

use std::process::ExitCode;

use anyhow::Result;
use braid_proto::pb::{HealthFinding, HealthRequest};
use serde::Serialize;

use crate::admin::answer::{Answer, print};
use crate::admin::connection::Connection;
use crate::admin::table::Table;
use crate::args::types::Output;

/// What an error is called.
const ERROR: &str = "error";

/// What is wrong, worst first.
#[derive(Serialize)]
struct Health {
    healthy: bool,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    /// "error" or "warning".
    severity: String,
    text: String,
}

/// Asks and prints. `connection` may still fail.
pub async fn run(connection: impl Future<Output = Result<Connection>>, output: Output) -> ExitCode {
    let asked = async {
        let findings = connection.await?.ask(HealthRequest {}).await?.findings;
        let health = Health::new(findings);
        print(output, &health)?;
        Ok::<_, anyhow::Error>(health.code())
    };
    let code = asked.await.unwrap_or_else(|error| {
        eprintln!("braid: {error:#}");
        2
    });
    ExitCode::from(code)
}

impl Health {
    fn new(findings: Vec<HealthFinding>) -> Self {
        let findings = findings.into_iter().map(|HealthFinding { severity, text }| Finding { severity, text });
        let findings: Vec<Finding> = findings.collect();
        Self { healthy: findings.is_empty(), findings }
    }

    fn code(&self) -> u8 {
        match self.findings.iter().any(|finding| finding.severity == ERROR) {
            true => 2,
            false => u8::from(!self.healthy),
        }
    }
}

impl Answer for Health {
    fn text(&self) -> String {
        if self.healthy {
            return "healthy: nothing is wrong\n".to_owned();
        }
        let mut table = Table::new(&["SEVERITY", "FINDING"]);
        self.findings.iter().for_each(|finding| table.row(vec![finding.severity.clone(), finding.text.clone()]));
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides() {
        let health = |severities: &[&str]| {
            let finding = |severity: &&str| HealthFinding { severity: (*severity).to_owned(), text: "s3".to_owned() };
            Health::new(severities.iter().map(finding).collect())
        };
        assert_eq!(health(&[]).code(), 0);
        assert_eq!(health(&["warning", "warning"]).code(), 1);
        assert_eq!(health(&["error", "warning"]).code(), 2);
        assert_eq!(health(&[]).text(), "healthy: nothing is wrong\n");
        assert_eq!(health(&["warning"]).text(), "SEVERITY  FINDING\nwarning   s3\n");
        let json = serde_json::to_value(health(&["error"])).unwrap();
        assert_eq!((json["healthy"].as_bool(), json["findings"][0]["severity"].as_str()), (Some(false), Some("error")));
    }

    #[tokio::test]
    async fn nobody_to_ask_is_an_error() {
        let refused = async { anyhow::bail!("no endpoint answers") };
        assert_eq!(format!("{:?}", run(refused, Output::Json).await), format!("{:?}", ExitCode::from(2)));
    }
}
