//! Where and how the generator ran, for reports.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Options whose values nobody may read in a report.
const SECRET_OPTIONS: [&str; 2] = ["--secret", "--api-key"];
const HIDDEN: &str = "***";

/// See the module's documentation.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// When it began, in UTC.
    pub(crate) started: String,
    /// Name and version of the generator.
    pub(crate) tool: &'static str,
    /// The command line, without secrets.
    pub(crate) command: String,
    /// Operating system and kernel.
    pub(crate) system: String,
    /// Model of the processor.
    pub(crate) processor: String,
    /// Cores that the generator may use.
    pub(crate) cores: usize,
}

impl Machine {
    /// This one, now.
    pub(crate) fn look() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name"));
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: utc(since.as_secs()),
            tool: concat!("archmesh-loadtest ", env!("CARGO_PKG_VERSION")),
            command: command(std::env::args()),
            system: format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
            processor: processor
                .map_or("unknown", |name| name.trim_matches(['\t', ' ', ':']))
                .into(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// A command line as it would be typed; secrets and what stands behind `?` in addresses are left out.
fn command(arguments: impl Iterator<Item = String>) -> String {
    let mut hide = false;
    let shown = arguments.map(|argument| {
        let hidden = std::mem::take(&mut hide);
        let name = argument.split('=').next().unwrap_or_default();
        if hidden {
            return HIDDEN.to_owned();
        }
        if SECRET_OPTIONS.contains(&name) {
            hide = name == argument;
            return if hide { argument } else { format!("{name}={HIDDEN}") };
        }
        let query = argument.find("://").and_then(|_| argument.find('?'));
        let text =
            query.map_or(argument.clone(), |query| format!("{}?{HIDDEN}", &argument[..query]));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
        let quote = text.is_empty() || !text.chars().all(plain);
        if quote { format!("'{}'", text.replace('\'', "'\\''")) } else { text }
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Seconds since 1970 as a date and time.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &[&str]) -> String {
        command(line.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn secrets_are_not_shown() {
        let line =
            ["x", "--secret", "a b", "--api-key=key", "--url", "ws://h:1/ws?token=t", "--quiet"];
        assert_eq!(shown(&line), "x --secret *** --api-key=*** --url 'ws://h:1/ws?***' --quiet");
        assert_eq!(shown(&["x", "it's", ""]), "x 'it'\\''s' ''");
        assert_eq!(shown(&["x", "--secret"]), "x --secret");
    }

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_826_154, "2000-02-29 12:09:14 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn the_machine_is_told() {
        let machine = Machine::look();
        assert!(machine.cores > 0 && machine.system.len() > "Linux ".len(), "{machine:?}");
    }
}
