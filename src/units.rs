//! Numbers for people.

/// `8015581184` as `8,015,581,184`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

/// Bytes in the unit that leaves few digits.
pub fn bytes(n: u64) -> String {
    let kb = n as f64 / 1e3;
    match kb {
        ..1e3 => format!("{kb:.1} kB"),
        1e3..1e7 => format!("{:.1} MB", kb / 1e3),
        _ => format!("{:.1} GB", kb / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 8_015_581_184].map(thousands), ["0", "999", "1,000", "8,015,581,184"]);
        assert_eq!([31_040, 1_234_567, 32_000_000_000].map(bytes), ["31.0 kB", "1.2 MB", "32.0 GB"]);
    }
}
