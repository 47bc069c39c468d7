//! Evaluates arithmetic that a model has written.

/// Which expressions are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Whole numbers, `+ - * /`, brackets.
    Plain,
    /// What Python's `eval` makes of the same signs: also decimals, powers `**`, floor division `//`.
    Python,
}

/// How deep brackets and signs may nest.
const MAX_DEPTH: usize = 200;

struct Parser<'a> {
    rest: &'a [u8],
    dialect: Dialect,
    depth: usize,
}

/// The value of `text`; `None` for what is no expression, and where it divides by zero.
pub fn evaluate(text: &str, dialect: Dialect) -> Option<f64> {
    let mut parser = Parser { rest: text.trim().as_bytes(), dialect, depth: 0 };
    let value = parser.sum()?;
    parser.space();
    (parser.rest.is_empty() && value.is_finite()).then_some(value)
}

impl Parser<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Takes `sign`, unless `not` follows it.
    fn take(&mut self, sign: &str, not: &str) -> bool {
        self.space();
        let found = self.rest.strip_prefix(sign.as_bytes());
        match found.filter(|rest| not.is_empty() || !rest.starts_with(not.as_bytes())) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn sum(&mut self) -> Option<f64> {
        let mut value = self.product()?;
        loop {
            if self.take("+", "") {
                value += self.product()?;
            } else if self.take("-", "") {
                value -= self.product()?;
            } else {
                return Some(value);
            }
        }
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.signed()?;
        loop {
            if self.take("*", "*") {
                value *= self.signed()?;
            } else if self.dialect == Dialect::Python && self.take("//", "") {
                value = (value / nonzero(self.signed()?)?).floor();
            } else if self.take("/", "/") {
                value /= nonzero(self.signed()?)?;
            } else {
                return Some(value);
            }
        }
    }

    fn signed(&mut self) -> Option<f64> {
        self.depth += 1;
        let value = if self.depth > MAX_DEPTH {
            None
        } else if self.take("-", "") {
            self.signed().map(|v| -v)
        } else if self.take("+", "") {
            self.signed()
        } else {
            self.power()
        };
        self.depth -= 1;
        value
    }

    fn power(&mut self) -> Option<f64> {
        let base = self.atom()?;
        if self.dialect == Dialect::Python && self.take("**", "") {
            return Some(base.powf(self.signed()?));
        }
        Some(base)
    }

    fn atom(&mut self) -> Option<f64> {
        if self.take("(", "") {
            let value = self.sum()?;
            return self.take(")", "").then_some(value);
        }
        self.space();
        let decimal = self.dialect == Dialect::Python;
        let end = self.rest.iter().position(|b| !(b.is_ascii_digit() || decimal && *b == b'.'));
        let (number, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        let number = std::str::from_utf8(number).ok()?;
        // Python refuses numbers that begin with a zero.
        let zeros = number.len() > 1 && number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
        if zeros && number.bytes().any(|b| b != b'0') {
            return None;
        }
        self.rest = rest;
        number.parse().ok()
    }
}

fn nonzero(value: f64) -> Option<f64> {
    (value != 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_brackets_and_signs() {
        let plain = |text: &str| evaluate(text, Dialect::Plain);
        assert_eq!(plain("2 + 3*4 - 6/2"), Some(11.0));
        assert_eq!(plain("-(2+3)*-4"), Some(20.0));
        assert_eq!(plain(" (8 / 3) * 3 "), Some(8.0));
        for wrong in ["", "1 +", "2(3)", "1/0", "4 4", "2**3", "7//2", "1.5", "07", "x", "(1", "1)"] {
            assert_eq!(plain(wrong), None, "{wrong}");
        }
        assert_eq!(plain(&"(".repeat(100_000)), None);
        assert_eq!(plain(&"-".repeat(100_000)), None);
    }

    #[test]
    fn python_knows_more() {
        let python = |text: &str| evaluate(text, Dialect::Python);
        assert_eq!(python("2**3**2"), Some(512.0));
        assert_eq!(python("-2**2"), Some(-4.0));
        assert_eq!(python("7//2 + .5"), Some(3.5));
        assert_eq!(python("-7//2"), Some(-4.0));
        assert_eq!(python("00 + 1."), Some(1.0));
        assert_eq!(python("1.2.3"), None);
    }
}
