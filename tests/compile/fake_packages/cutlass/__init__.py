from cutlass import cute as cute
from cutlass import utils as utils
