//! The process as the kernel sees it, from `/proc/self`. A file that cannot be read leaves its series out.

use std::time::Duration;

use super::families::Families;

/// Ticks per second of the times in `/proc/self/stat`; fixed at 100 in the kernel's interface on all platforms that
/// io_uring runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

/// Adds the standard `process_` families.
pub(super) fn collect(families: &mut Families) {
    if let Some(stat) = read("stat").as_deref().and_then(parse_stat) {
        families.counter(
            "process_cpu_seconds_total",
            "User and system CPU time of the process in seconds.",
            stat.cpu_ticks / TICKS_PER_SECOND,
        );
        families.gauge("process_threads", "Threads of the process.", stat.threads);
    }
    if let Some((virtual_bytes, resident_bytes)) = read("statm").as_deref().and_then(parse_statm) {
        families.gauge(
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            virtual_bytes,
        );
        families.gauge(
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            resident_bytes,
        );
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // The directory being read is itself one of the descriptors.
        let open = entries.count().saturating_sub(1);
        families.gauge("process_open_fds", "Open file descriptors.", open as f64);
    }
    if let Some(max) = read("limits").as_deref().and_then(parse_max_fds) {
        families.gauge("process_max_fds", "Most file descriptors the process may open.", max);
    }
}

/// User and system CPU time of the process so far.
pub(crate) fn cpu_time() -> Option<Duration> {
    let stat = read("stat").as_deref().and_then(parse_stat)?;
    Duration::try_from_secs_f64(stat.cpu_ticks / TICKS_PER_SECOND).ok()
}

#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    threads: f64,
}

fn read(file: &str) -> Option<String> {
    std::fs::read_to_string(format!("/proc/self/{file}")).ok()
}

/// Fields after the command name, which is in parentheses and may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Stat { cpu_ticks: number(11)? + number(12)?, threads: number(17)? })
}

fn parse_statm(text: &str) -> Option<(f64, f64)> {
    let mut pages = text.split_ascii_whitespace().map(str::parse::<f64>);
    Some((pages.next()?.ok()? * PAGE_BYTES, pages.next()?.ok()? * PAGE_BYTES))
}

fn parse_max_fds(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("Max open files"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b) S 1 7 7 0 -1 0 10 0 0 0 150 50 0 0 20 0 9 0 100 1000 20";
        assert_eq!(parse_stat(text), Some(Stat { cpu_ticks: 200.0, threads: 9.0 }));
    }

    #[test]
    fn limits_line_is_found() {
        let text = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 20000                files\n";
        assert_eq!(parse_max_fds(text), Some(1024.0));
    }

    #[test]
    fn this_process_has_numbers() {
        let mut families = Families::default();
        collect(&mut families);
        let names: Vec<_> =
            families.into_families().iter().map(|family| family.name().to_owned()).collect();
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_max_fds",
        ] {
            assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
        }
    }
}
