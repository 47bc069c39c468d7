//! Integers that number tokens: how a mixture of experts finds the rows that an expert takes.
//!
//! An element of a mask is numbered through the mask's axes, so its number is a sum of digits, each worth a weight (a
//! mixed radix); two of them are a token's sequence and its place there.  Exported graphs take such numbers apart and put
//! others together by divisions and sums.  As long as digits are told apart so is the token, and a number of rows of
//! several sequences means the same token.

use crate::ir::Dim;

/// What a digit counts: the sequences of a batch, the places of a sequence, or an axis of something else.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Counted {
    Sequences,
    Places,
    Axis(usize),
}

/// From 0 up to a size, times a weight.
#[derive(Clone, PartialEq, Debug)]
struct Digit {
    counted: Counted,
    size: Dim,
    weight: Dim,
}

impl Digit {
    /// What the next digit above is worth at least.
    fn span(&self) -> Dim {
        self.weight.clone() * self.size.clone()
    }
}

/// What each element of a list is: a sum of digits, the highest first, none of which carries into the next.
#[derive(Clone, PartialEq, Debug)]
pub struct Number {
    /// How long the list is.
    pub list: Dim,
    digits: Vec<Digit>,
}

impl Number {
    /// Numbers of a list of elements of this shape, row after row, where two digits of them are a token's.
    pub fn of(shape: &[Dim], [batch, length]: &[Dim; 2], list: Dim) -> Option<Number> {
        let counts = |d: &Dim| d.symbols().iter().any(|s| [batch, length].iter().any(|n| n.symbols().contains(s)));
        let tokens = batch.clone() * length.clone();
        let (mut digits, mut weight) = (Vec::new(), Dim::Known(1));
        let mut push = |counted, size: Dim| {
            let digit = Digit { counted, size, weight: weight.clone() };
            weight = digit.span();
            digits.push(digit);
        };
        for (axis, size) in shape.iter().enumerate().rev() {
            let each = |of: &Dim| size.div_exact(of).filter(|rest| !counts(rest));
            if !counts(size) {
                push(Counted::Axis(axis), size.clone());
            } else if size == length {
                push(Counted::Places, size.clone());
            } else if let Some(rest) = each(&tokens) {
                push(Counted::Axis(axis), rest);
                push(Counted::Places, length.clone());
                push(Counted::Sequences, batch.clone());
            } else {
                push(Counted::Axis(axis), each(batch)?);
                push(Counted::Sequences, batch.clone());
            }
        }
        digits.retain(|d| !d.size.is(1));
        digits.reverse();
        let how_many = |counted| digits.iter().filter(|d| d.counted == counted).count();
        let one_token = how_many(Counted::Sequences) == 1 && how_many(Counted::Places) == 1;
        one_token.then_some(Number { list, digits })
    }

    /// Whether it tells anything of a token.
    pub fn tells_tokens(&self) -> bool {
        self.digits.iter().any(|d| !matches!(d.counted, Counted::Axis(_)))
    }

    /// Whether it numbers an element of this shape that is the same token's.
    pub fn addresses(&self, shape: &[Dim], sizes: &[Dim; 2]) -> bool {
        let Some(elements) = Number::of(shape, sizes, self.list.clone()) else { return false };
        let own = |n: &Number| -> Vec<Digit> {
            n.digits.iter().filter(|d| !matches!(d.counted, Counted::Axis(_))).cloned().collect()
        };
        own(self) == own(&elements)
    }

    pub fn times(&self, factor: &Dim) -> Option<Number> {
        let digits = self.digits.iter().map(|d| Digit { weight: d.weight.clone() * factor.clone(), ..d.clone() });
        is_positive(factor).then(|| Number { digits: digits.collect(), ..self.clone() })
    }

    /// The quotient without its fraction: the digits that are worth multiples of the divisor, where the others together
    /// are worth less.
    pub fn over(&self, divisor: &Dim) -> Option<Number> {
        let quotients =
            self.digits.iter().map_while(|d| Some(Digit { weight: d.weight.div_exact(divisor)?, ..d.clone() }));
        let digits: Vec<Digit> = quotients.collect();
        let rest_fits = self.digits.get(digits.len()).is_none_or(|d| divisor.div_exact(&d.span()).is_some());
        (is_positive(divisor) && rest_fits).then_some(Number { digits, ..self.clone() })
    }

    pub fn minus(&self, other: &Number) -> Option<Number> {
        let subtracts = self.list == other.list && other.digits.iter().all(|d| self.digits.contains(d));
        let digits = self.digits.iter().filter(|d| !other.digits.contains(d)).cloned().collect();
        subtracts.then_some(Number { digits, ..self.clone() })
    }

    pub fn plus(&self, other: &Number) -> Option<Number> {
        let mut sum = (self.list == other.list).then(|| self.clone())?;
        for digit in &other.digits {
            let above = sum.digits.iter().take_while(|d| d.weight.div_exact(&digit.span()).is_some()).count();
            sum.digits.insert(above, digit.clone());
        }
        let no_carry = sum.digits.windows(2).all(|pair| pair[0].weight.div_exact(&pair[1].span()).is_some());
        no_carry.then_some(sum)
    }
}

/// Whether a size is positive by its look: a digit of negative weight would take from those above it.
fn is_positive(size: &Dim) -> bool {
    let monomials = size.monomials();
    !monomials.is_empty() && monomials.iter().all(|(_, factor)| *factor > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(text: &str) -> Dim {
        Dim::parse(text).unwrap()
    }

    fn sizes() -> [Dim; 2] {
        ["batch", "seq"].map(dim)
    }

    fn number(shape: &[&str]) -> Option<Number> {
        Number::of(&shape.iter().map(|d| dim(d)).collect::<Vec<_>>(), &sizes(), dim("rows"))
    }

    /// `places * tokens + token` becomes `token * places + place`, as an exported loop over experts computes it.
    #[test]
    fn digits_are_told_apart_and_put_together() {
        let flat = number(&["2", "batch*seq"]).unwrap();
        let place = flat.over(&dim("batch*seq")).unwrap();
        let token = flat.minus(&place.times(&dim("batch*seq")).unwrap()).unwrap();
        assert!(token.addresses(&[dim("batch*seq")], &sizes()) && !place.tells_tokens());
        let choice = token.times(&dim("2")).unwrap().plus(&place).unwrap();
        assert!(choice.addresses(&[dim("2*batch*seq")], &sizes()));
        assert!(!choice.addresses(&[dim("batch*seq")], &sizes()));
        assert!(flat.addresses(&[dim("2"), dim("batch*seq")], &sizes()));
        // The same sum the other way round carries: tokens' numbers reach beyond the weight of a place.
        assert_eq!(token.plus(&place.times(&dim("3")).unwrap()), None);
        assert_eq!(token.plus(&token), None);
        // So does a negative weight, which borrows.
        assert_eq!(place.times(&dim("-1")), None);
        assert_eq!(token.over(&dim("1-seq")), None);
        // A quotient that cuts through a digit.
        assert_eq!(flat.over(&dim("2")), None);
        let sequence = token.over(&dim("seq")).unwrap();
        assert!(sequence.tells_tokens() && !sequence.addresses(&[dim("batch*seq")], &sizes()));
    }

    #[test]
    fn masks_over_tokens_have_numbers_and_others_none() {
        for shape in
            [&["batch", "seq"][..], &["batch*seq", "8"], &["8*batch*seq"], &["batch", "4", "seq"], &["2*batch", "seq"]]
        {
            assert!(number(shape).is_some(), "{shape:?}");
        }
        // No token's, two tokens', or in an order that says nothing.
        for shape in
            [&["8"][..], &["seq", "8"], &["batch", "seq", "seq"], &["batch*seq", "batch*seq"], &["seq-1", "batch"]]
        {
            assert_eq!(number(shape), None, "{shape:?}");
        }
    }
}
