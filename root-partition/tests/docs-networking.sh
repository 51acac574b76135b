# The examples of the manual of networks, as they stand there.
# source: docs/networking.md networking.md
. /lib/testing.sh
networks() { vmctl net list | sed -n '2,$p' | grep -v '^ ' | cut -d' ' -f1; }
# An example has four spaces in front, and a line that ends with a backslash goes on.
sed -e ':again' -e '/\\$/{N;s/\\\n *//;b again' -e '}' networking.md | sed -n 's/^    \(vmctl net .*\)$/\1/p; s/^$/end/p' | sed 's/ *#.*//' >examples
count=0
is_new=yes
while read -r line; do
    case $line in
    end)
        is_new=yes
        continue
        ;;
    "vmctl net create "*)
        # Each block of examples is a machine of its own, and so is each line that makes the same network again.
        [ "$is_new" = no ] || networks >old
        name=$(echo "$line" | cut -d' ' -f4)
        [ ! -e "/sys/class/net/$name" ] || echo "$name" >>old
        sort -u old | while read -r old; do vmctl net delete "$old"; done
        : >old
        is_new=no
        expect "$name: created" $line
        ;;
    *) expect "" $line ;;
    esac
    count=$((count + 1))
done <examples
[ "$count" -ge 11 ] || fail "only $count examples: $(cat examples)"
