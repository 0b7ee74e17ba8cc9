# expect: pass
# cases: 5
class Node:
    pass
node = Node()
node.me, node.data = node, bytearray(150 << 20)
print('contained')
