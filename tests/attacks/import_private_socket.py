# expect: forbidden
# cases: 1
import _socket
