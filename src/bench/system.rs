//! What the operating system tells of this process and its machine (Linux; elsewhere nothing).

/// The most memory this process has had resident, in MB of 2^20 bytes.
pub fn peak_mb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Processor time of this process so far, all threads, in seconds.
pub fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold spaces; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11..13)?.iter().filter_map(|t| t.parse::<f64>().ok()).sum();
    // Linux counts in hundredths of a second for every program, whatever the kernel's own tick.
    Some(ticks / 100.0)
}

/// The machine's load average over a minute.
pub fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// The processor's name.
pub fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named = info.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split_once(':'));
    named.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().into())
}

/// The threads that a session takes where `threads` leaves the choice.
pub fn threads(threads: usize) -> usize {
    if threads > 0 { threads } else { std::thread::available_parallelism().map_or(1, usize::from) }
}
