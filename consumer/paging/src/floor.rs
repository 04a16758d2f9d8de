//! What the kernel alone takes for a fault that the touching thread resolves, with nothing behind it: for who measures what
//! a region adds.

use std::sync::Arc;

use crate::error::PagingError;
use crate::kernel::{Access, Faults, Kernel};
use crate::map::{Map, kernel_page};
use crate::signal::{Hooked, Resolve};

/// Memory whose pages are mapped as zeros when they are touched, and no more.
pub struct EmptyFaults {
    state: Arc<State>,
    _hooked: Hooked,
    page: usize,
    next: usize,
}

struct State {
    map: Map,
    kernel: Kernel,
    zeros: Box<[u8]>,
}

impl Resolve for State {
    fn resolve(&self, address: usize, _: Option<Access>) -> bool {
        let page = address - (address - self.map.at(0)) % self.zeros.len();
        self.kernel.copy_in(page, &self.zeros, true).error.is_none()
    }
}

impl EmptyFaults {
    /// Of so many pages of `page` bytes.
    ///
    /// # Errors
    /// [`PagingError`].
    pub fn new(pages: usize, page: usize) -> Result<Self, PagingError> {
        let page = page.max(kernel_page());
        let failed = |source| PagingError::Kernel { what: "mapping memory", source };
        let map = Map::new(pages * page, page).map_err(failed)?;
        let kernel = Kernel::new(&map, Faults::Signal)?;
        let state = Arc::new(State { map, kernel, zeros: vec![0; page].into_boxed_slice() });
        let (start, len) = (state.map.at(0), state.map.len());
        let hooked = Hooked::new(start, len, Arc::clone(&state) as _)?;
        Ok(Self { state, _hooked: hooked, page, next: 0 })
    }

    /// Has the next page touched be one that faults. To be called before each [`EmptyFaults::touch`], outside of what is
    /// measured.
    ///
    /// # Errors
    /// [`PagingError::Kernel`].
    pub fn prepare(&mut self) -> Result<(), PagingError> {
        if self.next * self.page >= self.state.map.len() {
            let dropped = self.state.map.drop_pages(0..self.state.map.len());
            dropped.map_err(|source| PagingError::Kernel { what: "dropping pages", source })?;
            self.next = 0;
        }
        Ok(())
    }

    /// Touches the next page.
    pub fn touch(&mut self) {
        let byte = self.state.map.peek(self.next * self.page);
        debug_assert_eq!(byte, 0);
        self.next += 1;
    }
}
