//! Dimensions: integers that may mention named symbols.
//!
//! A dimension is a polynomial with integer coefficients over symbols such as `batch` and `seq`.
//! That set is closed under `+ - *`, which is all that shapes of exported models need: `batch*seq`
//! rows of a flattened matrix, `seq-1` for shifted logits.  Division is exact or refused.

use std::fmt;
use std::sync::Arc;

/// A named unknown size, e.g. `batch`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Sym(Arc<str>);

impl Sym {
    pub fn new(name: &str) -> Self {
        Sym(Arc::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One monomial: its symbols in order, with repetition, and a coefficient that is not zero.
type Term = (Vec<Sym>, i64);

/// A size or an index: a known integer or a polynomial over symbols.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dim {
    Known(i64),
    /// At least one term mentions a symbol; terms are sorted by monomial and merged.
    Poly(Arc<[Term]>),
}

/// The most terms of a quotient; shapes of models have a handful.
const MOST_TERMS: usize = 64;

impl Dim {
    pub fn sym(name: &str) -> Self {
        Dim::from_terms(vec![(vec![Sym::new(name)], 1)])
    }

    pub fn known(&self) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(*n),
            Dim::Poly(_) => None,
        }
    }

    pub fn is(&self, n: i64) -> bool {
        *self == Dim::Known(n)
    }

    /// How many monomials, and the most symbols in one: what arithmetic with this size costs.
    pub fn extent(&self) -> (usize, usize) {
        match self {
            Dim::Known(_) => (1, 0),
            Dim::Poly(terms) => (terms.len(), terms.iter().map(|(s, _)| s.len()).max().unwrap_or(0)),
        }
    }

    fn terms(&self) -> Vec<Term> {
        match self {
            Dim::Known(0) => vec![],
            Dim::Known(n) => vec![(vec![], *n)],
            Dim::Poly(t) => t.to_vec(),
        }
    }

    fn from_terms(mut terms: Vec<Term>) -> Self {
        terms.sort();
        let mut merged: Vec<Term> = Vec::new();
        for (syms, c) in terms {
            match merged.last_mut() {
                Some((last, total)) if *last == syms => *total = total.saturating_add(c),
                _ => merged.push((syms, c)),
            }
        }
        merged.retain(|(_, c)| *c != 0);
        match merged.as_slice() {
            [] => Dim::Known(0),
            [(syms, c)] if syms.is_empty() => Dim::Known(*c),
            _ => Dim::Poly(merged.into()),
        }
    }

    /// The quotient, where the division leaves no remainder for every value of the symbols.
    pub fn div_exact(&self, by: &Dim) -> Option<Dim> {
        if let (Dim::Known(a), Dim::Known(b)) = (self, by) {
            return (*b != 0 && a % b == 0).then(|| Dim::Known(a / b));
        }
        if self == by {
            return Some(Dim::Known(1));
        }
        // Long division by the leading terms, by degree and then by symbols: an order that products keep.
        let leading = |d: &Dim| d.terms().into_iter().max_by(|(a, _), (b, _)| (a.len(), a).cmp(&(b.len(), b)));
        let (syms, c) = leading(by)?;
        let (mut rest, mut quotient) = (self.clone(), Dim::Known(0));
        for _ in 0..MOST_TERMS {
            let Some((mut s, k)) = leading(&rest) else { return Some(quotient) };
            for d in &syms {
                s.remove(s.iter().position(|x| x == d)?);
            }
            (k.checked_rem(c)? == 0).then_some(())?;
            let term = Dim::from_terms(vec![(s, k.checked_div(c)?)]);
            rest = rest - term.clone() * by.clone();
            quotient = quotient + term;
        }
        None
    }

    /// The value under an assignment of the symbols; `None` if one of them is unassigned.
    pub fn eval(&self, value: &dyn Fn(&Sym) -> Option<i64>) -> Option<i64> {
        match self {
            Dim::Known(n) => Some(*n),
            Dim::Poly(terms) => terms.iter().try_fold(0i64, |sum, (syms, c)| {
                let product = syms.iter().try_fold(*c, |p, s| value(s).map(|v| p.saturating_mul(v)))?;
                Some(sum.saturating_add(product))
            }),
        }
    }

    /// The size with others in place of its symbols.
    pub fn replaced(&self, with: &dyn Fn(&Sym) -> Option<Dim>) -> Dim {
        let size = |s: &Sym| with(s).unwrap_or_else(|| Dim::sym(s.as_str()));
        let product = |(syms, c): (Vec<Sym>, i64)| syms.iter().fold(Dim::Known(c), |p, s| p * size(s));
        self.terms().into_iter().map(product).fold(Dim::Known(0), |a, b| a + b)
    }

    /// Every symbol that occurs, in order, with repetition.
    pub fn symbols(&self) -> Vec<Sym> {
        self.terms().into_iter().flat_map(|(s, _)| s).collect()
    }

    /// The monomials `coefficient * symbols`, for emitting the arithmetic.
    pub fn monomials(&self) -> Vec<(Vec<Sym>, i64)> {
        self.terms()
    }

    /// Reads what `Display` prints: `64`, `seq`, `2*batch*seq-1`.
    pub fn parse(text: &str) -> Option<Dim> {
        let mut total = Dim::Known(0);
        let mut rest = text;
        while !rest.is_empty() {
            let sign = if rest.starts_with('-') { -1 } else { 1 };
            let body = rest.trim_start_matches(['+', '-']);
            let end = body.find(['+', '-']).unwrap_or(body.len());
            let mut product = Dim::Known(sign);
            for factor in body[..end].split('*') {
                let dim = match factor.parse::<i64>() {
                    Ok(n) => Dim::Known(n),
                    Err(_) if is_symbol(factor) => Dim::sym(factor),
                    Err(_) => return None,
                };
                product = product * dim;
            }
            total = total + product;
            rest = &body[end..];
        }
        (!text.is_empty()).then_some(total)
    }
}

/// Symbols are words of letters, digits, `_` and `.` that do not start with a digit.
pub fn is_symbol(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Dim::Known(n)
    }
}

impl std::ops::Add for Dim {
    type Output = Dim;
    fn add(self, other: Dim) -> Dim {
        match (&self, &other) {
            (Dim::Known(a), Dim::Known(b)) => Dim::Known(a.saturating_add(*b)),
            _ => Dim::from_terms([self.terms(), other.terms()].concat()),
        }
    }
}

impl std::ops::Sub for Dim {
    type Output = Dim;
    fn sub(self, other: Dim) -> Dim {
        self + other * Dim::Known(-1)
    }
}

impl std::ops::Mul for Dim {
    type Output = Dim;
    fn mul(self, other: Dim) -> Dim {
        if let (Dim::Known(a), Dim::Known(b)) = (&self, &other) {
            return Dim::Known(a.saturating_mul(*b));
        }
        let right = other.terms();
        let product = self.terms().into_iter().flat_map(|(s, a)| {
            right.iter().map(move |(t, b)| {
                let mut syms = [s.as_slice(), t.as_slice()].concat();
                syms.sort();
                (syms, a.saturating_mul(*b))
            })
        });
        Dim::from_terms(product.collect())
    }
}

/// The number of elements of a shape.
pub fn numel(shape: &[Dim]) -> Dim {
    shape.iter().cloned().fold(Dim::Known(1), |a, b| a * b)
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match self {
            Dim::Known(n) => return write!(f, "{n}"),
            Dim::Poly(terms) => terms,
        };
        // Symbols first, the constant last: `seq-1`.
        let (constant, symbolic): (Vec<_>, Vec<_>) = terms.iter().partition(|(s, _)| s.is_empty());
        for (k, (syms, c)) in symbolic.into_iter().chain(constant).enumerate() {
            let name = syms.iter().map(Sym::as_str).collect::<Vec<_>>().join("*");
            match (c, name.as_str()) {
                (1, n) if !n.is_empty() => write!(f, "{}{n}", if k > 0 { "+" } else { "" })?,
                (-1, n) if !n.is_empty() => write!(f, "-{n}")?,
                (c, "") => write!(f, "{c:+}")?,
                (c, n) if k == 0 => write!(f, "{c}*{n}")?,
                (c, n) => write!(f, "{c:+}*{n}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(text: &str) -> Dim {
        Dim::parse(text).unwrap()
    }

    #[test]
    fn arithmetic_is_normalised() {
        assert_eq!(d("seq") * d("batch"), d("batch*seq"));
        assert_eq!(d("seq") - Dim::from(1) + Dim::from(1), d("seq"));
        assert_eq!(d("seq") - d("seq"), Dim::from(0));
        assert_eq!((d("seq") - Dim::from(1)).to_string(), "seq-1");
        assert_eq!((d("batch") * (d("seq") + Dim::from(2)) * Dim::from(3)).to_string(), "6*batch+3*batch*seq");
    }

    #[test]
    fn display_reads_back() {
        for text in ["0", "-3", "seq", "-seq+4", "2*batch*seq-1", "batch*seq*seq"] {
            assert_eq!(d(text).to_string(), text);
        }
    }

    #[test]
    fn division_is_exact_or_refused() {
        assert_eq!(d("64*batch*seq").div_exact(&d("batch")), Some(d("64*seq")));
        assert_eq!(d("64*batch").div_exact(&d("128")), None);
        assert_eq!(d("128*batch+32*batch*seq").div_exact(&d("32*batch+8*batch*seq")), Some(d("4")));
        let (a, b) = (d("seq*seq+3*batch-2"), d("2*batch*seq+seq+1"));
        assert_eq!((a.clone() * b.clone()).div_exact(&b), Some(a.clone()));
        assert_eq!((a.clone() * b.clone() + d("1")).div_exact(&b), None);
        assert_eq!((a * b).div_exact(&d("seq+1")), None);
        assert_eq!(d("batch").div_exact(&d("seq")), None);
        assert_eq!(d("5").div_exact(&d("0")), None);
    }
}
