//! Dropout whose draws are products of whole numbers modulo a prime: one pass over x.

use super::operator::{Call, Compute, Tensor, int};
use super::vector::{Loop, Map, dispatch, map};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

/// x [.. n] of B L rows, a rate [], rows [B L k] and columns [B k n]: x where the draw stays, scaled up, else 0.
pub struct Dropout {
    field: f32,
}

/// How many numbers a draw is made of at most, besides zeros.
const NUMBERS: usize = 4;

#[derive(Clone, Copy)]
struct Thin<const N: usize> {
    numbers: [f32; N],
    field: f32,
    /// Draws below it stay.
    stay: f32,
    scale: f32,
}

/// x and N columns: products below 2^24 are exact, and so is the remainder.
macro_rules! thin {
    ($($n:literal: $m:literal),*) => { $(
        impl Map<$m> for Thin<$n> {
            #[inline(always)]
            fn at(self, x: [f32; $m]) -> f32 {
                let mut u = 0f32;
                for (number, x) in self.numbers.iter().zip(&x[1..]) {
                    u += number * x;
                }
                // Truncation to an integer is the floor of what is not negative, and needs no call.
                let draw = u - (u / self.field) as i32 as f32 * self.field;
                if draw < self.stay { x[0] * self.scale } else { 0.0 }
            }
        }
    )* };
}
thin!(1: 2, 2: 3, 3: 4, 4: 5);

struct Row<const N: usize, const M: usize> {
    thin: Thin<N>,
    from: [*const f32; M],
    to: *mut f32,
    n: usize,
}

impl<const N: usize, const M: usize> Loop for Row<N, M>
where
    Thin<N>: Map<M>,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // SAFETY: all addresses hold n elements.
        unsafe { map(self.thin, self.from, self.to, self.n) }
    }
}

impl Compute for Dropout {
    const NAME: &'static str = "Dropout";
    const OPERANDS: &'static [Type] = &[Type::Float32; 4];
    const IN_PLACE: &'static [(u32, u32)] = &[(0, 0)];

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        match int(node, "field")? {
            field @ 1..0x100_0000 => Ok(Dropout { field: field as f32 }),
            field => Err(format!("a field of {field} is not exact in f32")),
        }
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let [x, rate, rows, columns]: [Tensor<f32>; 4] =
            [call.operand(0)?, call.operand(1)?, call.operand(2)?, call.operand(3)?];
        let ([b, l, k], [b2, k2, n]) = (rows.shape.0.as_slice(), columns.shape.0.as_slice()) else {
            return Err(format!("rows {} and columns {} need three axes", rows.shape, columns.shape));
        };
        if (b, k) != (b2, k2) || x.shape.width() != *n || x.len() != b * l * n || rate.len() != 1 {
            let shapes = format!("rows {}, columns {} and rate {}", rows.shape, columns.shape, rate.shape);
            return Err(format!("{shapes} do not give one draw for each element of {}", x.shape));
        }
        match k {
            1 => self.run::<1, 2>(call, &x, &rate, &rows, &columns),
            2 => self.run::<2, 3>(call, &x, &rate, &rows, &columns),
            3 => self.run::<3, 4>(call, &x, &rate, &rows, &columns),
            0 => Err(format!("rows {} have no numbers", rows.shape)),
            // Packed sequences have numbers for each of a row's, of which a token has its own sequence's alone.
            _ => self.run::<NUMBERS, 5>(call, &x, &rate, &rows, &columns),
        }
    }
}

impl Dropout {
    fn run<const N: usize, const M: usize>(
        &self,
        call: &Call<'_>,
        x: &Tensor<f32>,
        rate: &Tensor<f32>,
        rows: &Tensor<f32>,
        columns: &Tensor<f32>,
    ) -> Result<(), String>
    where
        Thin<N>: Map<M>,
    {
        let to = &call.result(&x.shape)?;
        let (l, k, n, field) = (rows.shape.0[1], rows.shape.0[2], x.shape.width(), self.field);
        // SAFETY: rate and rows are not overwritten.
        let (rate, numbers) = unsafe { (rate.values()[0], rows.values()) };
        let stay = ((1.0 - rate) * field).ceil();
        if x.len() == 0 {
            return Ok(());
        }
        let used = |row: &[f32]| row.iter().filter(|x| **x != 0.0).count();
        if k > N && numbers.chunks(k).any(|row| used(row) > N) {
            return Err(format!("rows {} have more than {NUMBERS} numbers a draw that are not 0", rows.shape));
        }
        call.rows(x.len() / n, n, |part| {
            for r in part {
                let own = &numbers[r * k..(r + 1) * k];
                let mut places = (0..k).filter(|j| k == N || own[*j] != 0.0);
                let places: [Option<usize>; N] = std::array::from_fn(|_| places.next());
                let numbers = places.map(|place| place.map_or(0.0, |j| own[j]));
                let thin = Thin { numbers, field, stay, scale: field / stay };
                // SAFETY: row r of x and the result; row r / l * k + j of the columns.
                unsafe {
                    let column = |j: usize| columns.at.add((r / l * k + j) * n);
                    let from = std::array::from_fn(|j| match j {
                        0 => x.at.add(r * n),
                        j => column(places[j - 1].unwrap_or(0)),
                    });
                    dispatch(Row { thin, from, to: to.at(r * n), n });
                }
            }
        })
    }
}
