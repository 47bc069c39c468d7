//! Codes of weights in few bits that a source lays out in another way than `Op::Dequantize` reads them.

/// A matrix of codes as it lies in the source; codes of 4 bits share a byte, the first in its low half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codes {
    /// 4 or 8.
    pub bits: u32,
    /// Two's complement; blocks hold codes from 0 on, of which the middle one means 0.
    pub signed: bool,
    pub rows: usize,
    pub columns: usize,
    /// The source holds `columns` x `rows`.
    pub transposed: bool,
    /// Codes along a row that share a scale.
    pub block: usize,
}

impl Codes {
    pub fn per_row(&self) -> usize {
        self.columns.div_ceil(self.block)
    }

    /// The bytes of all blocks, `rows` x `per_row` x `block`.
    pub fn bytes(&self) -> usize {
        self.rows * self.per_row() * self.block * self.bits as usize / 8
    }

    /// The blocks, the last of a row filled up with the middle code.
    pub fn blocks(&self, source: &[u8]) -> Vec<u8> {
        let middle = 1u8 << (self.bits - 1);
        let code = |row: usize, column: usize| {
            let at = if self.transposed { column * self.rows + row } else { row * self.columns + column };
            let byte = |k: usize| source.get(k).copied().unwrap_or_default();
            let code = if self.bits == 4 { byte(at / 2) >> (at % 2 * 4) & 15 } else { byte(at) };
            if self.signed { code ^ middle } else { code }
        };
        let width = self.per_row() * self.block;
        let or_middle = |row, column| if column < self.columns { code(row, column) } else { middle };
        let all = (0..self.rows).flat_map(|row| (0..width).map(move |column| or_middle(row, column)));
        if self.bits == 8 {
            return all.collect();
        }
        let mut out = Vec::with_capacity(self.bytes());
        let mut all = all;
        while let (Some(low), Some(high)) = (all.next(), all.next()) {
            out.push(low | high << 4);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signed_codes_are_turned_and_filled_up() {
        // [3 2] of -8, 7, 0, 1, -1, 2, as two rows of three in blocks of four.
        let codes = Codes { bits: 4, signed: true, rows: 2, columns: 3, transposed: true, block: 4 };
        let blocks = codes.blocks(&[0x78, 0x10, 0x2f]);
        assert_eq!((blocks.len(), blocks), (codes.bytes(), vec![0x80, 0x87, 0x9f, 0x8a]));
    }

    #[test]
    fn bytes_stay_where_nothing_is_turned() {
        let codes = Codes { bits: 8, signed: false, rows: 2, columns: 2, transposed: false, block: 2 };
        assert_eq!(codes.blocks(&[1, 200, 3, 4]), [1, 200, 3, 4]);
    }
}
