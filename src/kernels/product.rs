//! Matrix products, dense: one of large matrices on all threads, or of many small ones, each on its own.

use super::broadcast::Shape;
use super::operator::{Call, Compute, Known, Target, Tensor, float, int};
use super::panels::{LEAST, multiply};
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

/// `alpha x y` where either may be transposed; leading axes broadcast.
pub struct Product {
    transposed: [bool; 2],
    alpha: f32,
}

/// The same added to a third operand of the result's shape.
pub struct ProductAdd(Product);

/// Sizes of a product.
struct Sizes {
    shape: Shape,
    /// Leading places of the result.
    batch: usize,
    sizes: [usize; 3],
}

impl Product {
    fn sizes(&self, x: &Shape, y: &Shape) -> Result<Sizes, String> {
        let [tx, ty] = self.transposed;
        let matrix = |s: &Shape, transposed: bool| match s.0.as_slice() {
            [leads @ .., r, c] if transposed => Ok((Shape(leads.to_vec()), *c, *r)),
            [leads @ .., r, c] => Ok((Shape(leads.to_vec()), *r, *c)),
            _ => Err(format!("{s} is no matrix")),
        };
        let ((x_leads, m, k), (y_leads, k2, n)) = (matrix(x, tx)?, matrix(y, ty)?);
        if k != k2 {
            return Err(format!("the inner sizes of {x} and {y} differ"));
        }
        let leads = x_leads.join(&y_leads)?;
        let shape = Shape([leads.0.as_slice(), &[m, n]].concat());
        let batch = leads.numel();
        // Rows of a batch before one matrix are rows of one matrix.
        let joins = !tx && y_leads.numel() == 1 && x_leads == leads;
        let (batch, m) = if joins { (1, batch * m) } else { (batch, m) };
        Ok(Sizes { shape, batch, sizes: [m, k, n] })
    }

    fn run(&self, call: &Call<'_>, addend: Option<&Tensor<f32>>) -> Result<(), String> {
        let (x, y): (Tensor<f32>, Tensor<f32>) = (call.operand(0)?, call.operand(1)?);
        let Sizes { shape, batch, sizes } = self.sizes(&x.shape, &y.shape)?;
        let to = call.result(&shape)?;
        let [m, k, n] = sizes;
        if let Some(addend) = addend.filter(|addend| addend.shape != shape) {
            return Err(format!("a product of shape {shape} is added to one of {}", addend.shape));
        }
        // Sums start at it: what is added to is read where it lies, which may be the result.
        let add = addend.map(|addend| Target(addend.at.cast_mut()));
        let [tx, ty] = self.transposed;
        let x_matrix = Matrix::new(x.at, if tx { m } else { k }, tx);
        let y_matrix = Matrix::new(y.at, if ty { k } else { n }, ty);
        if batch == 1 {
            // SAFETY: the sizes are those of the operands, and the result is none of the factors.
            return unsafe { multiply(Some(call), sizes, x_matrix, y_matrix, (to, n), self.alpha, add) };
        }
        let places = |own: &Shape| -> Vec<usize> { own.repeated(&shape) };
        let (xs, ys) = (places(&x.shape), places(&y.shape));
        call.split(batch, (LEAST / (m * k * n).max(1)).max(1), |range| {
            for b in range {
                // SAFETY: matrix b of the result is this part's alone.
                unsafe {
                    let (x, y) = (x_matrix.element(xs[b] * m * k), y_matrix.element(ys[b] * k * n));
                    let own = |all: Target| Target(all.at(b * m * n));
                    // Only threads can fail.
                    let _ = multiply(None, sizes, x, y, (own(to), n), self.alpha, add.map(own));
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

impl Compute for Product {
    const NAME: &'static str = "Product";
    const OPERANDS: &'static [Type] = &[Type::Float32; 2];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        let transposed = [int(node, "transA")? != 0, int(node, "transB")? != 0];
        Ok(Product { transposed, alpha: float(node, "alpha")? })
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        self.run(call, None)
    }
}

impl Compute for ProductAdd {
    const NAME: &'static str = "ProductAdd";
    const OPERANDS: &'static [Type] = &[Type::Float32; 3];
    const IN_PLACE: &'static [(u32, u32)] = &[(2, 0)];
    const SHAPE: Known = Known::Nothing;

    fn new(node: &KernelContext<'_>) -> Result<Self, String> {
        Product::new(node).map(ProductAdd)
    }

    fn compute(&self, call: &Call<'_>) -> Result<(), String> {
        let addend = call.operand(2)?;
        self.0.run(call, Some(&addend))
    }
}
