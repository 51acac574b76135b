# VM 0's stock driver reaches the gateway of the machine's network.
. /lib/testing.sh
expect " 5 packets received" ping -c 5 -W 5 10.0.2.2
# Larger than a page, so that it is sent in pieces.
expect " 2 packets received" ping -c 2 -W 5 -s 8000 10.0.2.2
