//! Matrix products, dense: one of large matrices on all threads, or of many small ones, each on its own.

use super::broadcast::Shape;
use super::operator::{Call, Compute, Known, Target, Tensor, float, int};
use super::panels::{LEAST, add_up};
use super::terms::{Term, steps};
use ort::operator::KernelContext;
use ort::value::TensorElementType as Type;

/// A matrix in memory: its address and how far apart rows and columns are.
#[derive(Clone, Copy)]
pub struct Matrix {
    pub at: *const f32,
    pub row: usize,
    pub column: usize,
}

// SAFETY: threads only read.
unsafe impl Send for Matrix {}
unsafe impl Sync for Matrix {}

impl Matrix {
    /// Rows of `width` elements behind one another, or the transpose of such.
    pub fn new(at: *const f32, width: usize, transposed: bool) -> Self {
        if transposed { Matrix { at, row: 1, column: width } } else { Matrix { at, row: width, column: 1 } }
    }

    /// The part that begins at row `r` and column `c`.
    ///
    /// # Safety
    /// The matrix reaches there.
    pub unsafe fn from(self, r: usize, c: usize) -> Self {
        // SAFETY: by the caller's promise.
        Matrix { at: unsafe { self.at.add(r * self.row + c * self.column) }, ..self }
    }

    pub fn transposed(self) -> Self {
        Matrix { row: self.column, column: self.row, ..self }
    }
}

/// The sum of `TERMS` products, and of a last operand of the result's shape where it is to `ADD` one.
pub struct Products<const TERMS: usize, const ADD: bool>([Product; TERMS]);

/// `alpha x y` where either may be transposed; leading axes broadcast.
struct Product {
    transposed: [bool; 2],
    alpha: f32,
}

/// A product of a call.
struct Factors<'a> {
    of: &'a Product,
    factors: [Tensor<f32>; 2],
    shape: Shape,
    /// Whether rows of a batch before one matrix are rows of one matrix.
    joins: bool,
    steps: usize,
}

impl Product {
    fn of(&self, factors: [Tensor<f32>; 2]) -> Result<Factors<'_>, String> {
        let [tx, ty] = self.transposed;
        let [x, y] = factors.each_ref().map(|factor| &factor.shape);
        let matrix = |s: &Shape, transposed: bool| match s.0.as_slice() {
            [leads @ .., r, c] if transposed => Ok((Shape(leads.to_vec()), *c, *r)),
            [leads @ .., r, c] => Ok((Shape(leads.to_vec()), *r, *c)),
            _ => Err(format!("{s} is no matrix")),
        };
        let ((x_leads, m, steps), (y_leads, k, n)) = (matrix(x, tx)?, matrix(y, ty)?);
        if steps != k {
            return Err(format!("the inner sizes of {x} and {y} differ"));
        }
        let leads = x_leads.join(&y_leads)?;
        let shape = Shape([leads.0.as_slice(), &[m, n]].concat());
        let joins = !tx && y_leads.numel() == 1 && x_leads == leads;
        Ok(Factors { of: self, factors, shape, joins, steps })
    }
}

impl Factors<'_> {
    /// The first matrices, for a result of `m` rows and `n` columns.
    fn term(&self, [m, n]: [usize; 2]) -> Term {
        let (steps, [x, y], [tx, ty]) = (self.steps, &self.factors, self.of.transposed);
        let x = Matrix::new(x.at, if tx { m } else { steps }, tx);
        let y = Matrix::new(y.at, if ty { steps } else { n }, ty);
        Term { x, y, steps, scale: self.of.alpha }
    }
}

impl<const TERMS: usize, const ADD: bool> Compute for Products<TERMS, ADD> {
    const NAME: &'static str = match (TERMS, ADD) {
        (1, false) => "Product",
        (1, true) => "ProductAdd",
        (_, false) => "ProductPair",
        (_, true) => "ProductPairAdd",
    };
    const OPERANDS: &'static [Type] = match (TERMS, ADD) {
        (1, false) => &[Type::Float32; 2],
        (1, true) => &[Type::Float32; 3],
        (_, false) => &[Type::Float32; 4],
        (_, true) => &[Type::Float32; 5],
    };
    const IN_PLACE: &'static [(u32, u32)] = if ADD { &[(2 * TERMS as u32, 0)] } else { &[] };
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        let turned = |name: &str| Ok::<_, String>(int(node, name)? != 0);
        // The left factors of a pair never are.
        let transposed =
            [[TERMS == 1 && turned("transA")?, turned("transB")?], [false, TERMS > 1 && turned("transD")?]];
        let alpha = [float(node, "alpha")?, if TERMS > 1 { float(node, "beta")? } else { 0.0 }];
        Ok(Products(std::array::from_fn(|k| Product { transposed: transposed[k], alpha: alpha[k] })))
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let mut products = Vec::with_capacity(TERMS);
        for (k, product) in self.0.iter().enumerate() {
            products.push(product.of([call.operand(2 * k)?, call.operand(2 * k + 1)?])?);
        }
        let addend: Option<Tensor<f32>> = if ADD { Some(call.operand(2 * TERMS)?) } else { None };
        let shape = &products[0].shape;
        let mut others =
            products.iter().map(|product| &product.shape).chain(addend.as_ref().map(|addend| &addend.shape));
        if let Some(other) = others.find(|other| *other != shape) {
            return Err(format!("a product of shape {shape} is added to one of {other}"));
        }
        let to = call.result(shape)?;
        // Sums start at it: what is added to is read where it lies, which may be the result.
        let add = addend.map(|addend| Target(addend.at.cast_mut()));
        let [leads @ .., m, n] = shape.0.as_slice() else { return Err(format!("{shape} is no matrix")) };
        let (m, n, batch) = (*m, *n, leads.iter().product::<usize>());
        let (m, batch) = if products.iter().all(|product| product.joins) { (batch * m, 1) } else { (m, batch) };
        let terms: Vec<Term> = products.iter().map(|product| product.term([m, n])).collect();
        if batch == 1 {
            // SAFETY: the sizes are those of the operands, and the result is none of the factors.
            return unsafe { add_up(Some(call), [m, n], &terms, (to, n), add) };
        }
        let places = |product: &Factors| product.factors.each_ref().map(|factor| factor.shape.repeated(shape));
        let places: Vec<[Vec<usize>; 2]> = products.iter().map(places).collect();
        let work = m * n * steps(&terms);
        call.split(batch, (LEAST / work.max(1)).max(1), |range| {
            for b in range {
                let term = |(term, [xs, ys]): (&Term, &[Vec<usize>; 2])| {
                    // SAFETY: the factors have these matrices.
                    let (x, y) =
                        unsafe { (term.x.element(xs[b] * m * term.steps), term.y.element(ys[b] * term.steps * n)) };
                    Term { x, y, ..*term }
                };
                let terms: Vec<Term> = terms.iter().zip(&places).map(term).collect();
                // SAFETY: matrix b of the result is this part's alone.
                unsafe {
                    let own = |all: Target| Target(all.at(b * m * n));
                    // Only threads can fail.
                    let _ = add_up(None, [m, n], &terms, (own(to), n), add.map(own));
                }
            }
        })
    }
}

impl Matrix {
    /// The matrix that lies `k` elements behind.
    ///
    /// # Safety
    /// There is one.
    pub unsafe fn element(self, k: usize) -> Self {
        // SAFETY: by the caller's promise.
        Matrix { at: unsafe { self.at.add(k) }, ..self }
    }
}

impl Shape {
    /// For each leading place of `whole`, a matrix, which matrix of this shape broadcasts there.
    fn repeated(&self, whole: &Shape) -> Vec<usize> {
        let leads = &whole.0[..whole.0.len() - 2];
        let own = &self.0[..self.0.len() - 2];
        let mut places = vec![0usize];
        let missing = leads.len() - own.len();
        for (axis, size) in leads.iter().enumerate() {
            let mine = axis.checked_sub(missing).map_or(1, |k| own[k]);
            let next = |p: usize| (0..*size).map(move |i| p * mine + if mine == 1 { 0 } else { i });
            places = places.into_iter().flat_map(next).collect();
        }
        places
    }
}
