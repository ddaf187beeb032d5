//! Asks before something is done that cannot be undone.

use std::io::{self, BufRead, IsTerminal as _, Write};

use anyhow::{Context as _, Result, bail};

/// Returns if `what` shall be done: `--yes` was given, or the operator says so. What is at stake is `risk`, a sentence.
pub fn confirm(yes: bool, what: &str, risk: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        bail!("{what} needs --yes where there is no terminal to ask on: {risk}");
    }
    put_to(&mut io::stdin().lock(), &mut io::stderr(), what, risk)
}

fn put_to(answers: &mut impl BufRead, questions: &mut impl Write, what: &str, risk: &str) -> Result<()> {
    write!(questions, "{risk}\n{what}? (y/N) ").and_then(|()| questions.flush()).context("asking")?;
    let mut answer = String::new();
    answers.read_line(&mut answer).context("reading the answer")?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was done: it was not confirmed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        let ask = |answer: &str| {
            let mut shown = Vec::new();
            let said = put_to(&mut answer.as_bytes(), &mut shown, "remove s3", "It never comes back.");
            assert_eq!(String::from_utf8(shown).unwrap(), "It never comes back.\nremove s3? (y/N) ");
            said.map_err(|error| error.to_string())
        };
        for yes in ["y\n", "Y\n", "yes\n", " yes \r\n", "y"] {
            assert_eq!(ask(yes), Ok(()), "{yes:?}");
        }
        for no in ["", "\n", "n\n", "yess\n", "no\n"] {
            assert_eq!(ask(no), Err("nothing was done: it was not confirmed".to_owned()), "{no:?}");
        }
    }
}
